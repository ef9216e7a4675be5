"""Curation: from raw footage to the dataset folder that post-training reads.

`split.py` runs it: `stages.py` (ingest, shots, transcode, captions, write) under an executor of `engine.py`, with what was
done in `records.py`. Imports `data`, `text_encoders` and `io`; only `cli` imports it.
"""
