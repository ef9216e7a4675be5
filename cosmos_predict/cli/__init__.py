"""The argument parsers behind `scripts/`, `inference/` and `train.py`. Sees the whole package; it never imports `cli`.

A module here imports no torch at its top: parsing arguments and printing `--help` must stay light.
"""
