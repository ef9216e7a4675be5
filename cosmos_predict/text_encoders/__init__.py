"""Text encoders: T5-11B and Cosmos-Reason1 through transformers, and a tiny offline encoder of T5's output shape.

Imports only `errors`, `io` and `config` of the package; `models`, `pipelines`, `curate` and `cli` may import it.
"""
