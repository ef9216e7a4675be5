"""Files: tensors, embeddings and pickles read without running code, their strict accounting, atomic writes, the model hub.

Imports `errors` only, of the package; everything may import it. `accounting`, `atomic`, `unpickle` and `hub` import no torch.
"""
