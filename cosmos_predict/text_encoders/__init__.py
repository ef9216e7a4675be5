"""Text encoders: T5-11B through transformers, and a tiny offline encoder of the same output shape.

Imports only `errors`, `io` and `config` of the package; `models`, `pipelines`, `curate` and `cli` may import it.
"""
