"""Files: tensors, embeddings and pickles read without running code, atomic writes, the model hub.

Imports `errors` only, of the package; everything may import it. `atomic`, `unpickle` and `hub` import no torch.
"""
