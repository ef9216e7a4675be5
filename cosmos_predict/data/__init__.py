"""From files to samples: video and image readers, transforms, samplers, datasets, loaders, robot and vehicle signals.

Uses `errors`, `randomness`, `io` and `config`; knows neither networks nor diffusion, tokenizers or text encoders.
"""
