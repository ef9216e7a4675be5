"""Encode a run's dataset once, so that training needs no tokenizer: `python scripts/cache_latents.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.cache_latents import main

    main()
