"""Measures and pictures of generated clips against real ones. Uses `data` and `io`; only `cli` imports it."""
