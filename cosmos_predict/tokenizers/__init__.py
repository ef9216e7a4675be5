"""Video and image tokenizers: Wan 2.1, Cosmos CV and CI, and the weight-free DCT.

`load.load_tokenizer` builds any of them by name or from a file. Imports only `errors` and `io` of the package.
"""
