"""Videos with one prompt to Cosmos-1.0 cached latents: `python scripts/prepare_dataset.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.prepare_dataset import main

    main(Path(__file__).name)
