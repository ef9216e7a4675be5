"""The diffusion transformer and its parts: attention, rotary tables, blocks, patches, control embedders, LoRA, FLOPs.

Imports only `errors`, `randomness`, `io` and `config` of the package; knows neither diffusion nor data, tokenizers or
text encoders. `conditions` and everything above may import it.
"""
