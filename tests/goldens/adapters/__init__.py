"""One adapter per (area, kind): reads a case, calls public package functions, returns the outputs. No mathematics here.

Every module of this folder registers its adapters on import with `@adapter(area, kind)`.
"""
