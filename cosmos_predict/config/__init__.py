"""Configuration as data: lazy calls, the top-level schema, registered experiments and groups, overrides, YAML files.

Imports `errors` and `io` only, and no torch; everything above it may import it. Start reading at `compose.py`.
"""
