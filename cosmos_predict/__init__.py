"""Post-training and running video world models of the Cosmos family.

Importing the package is free of heavy imports: no torch, no GPU, no network. Sub-packages import what they need;
`docs/architecture.md` draws which may import which.
"""

__version__ = "0.1.0"
