"""Download the published Cosmos-1.0 NeMo weights: `python scripts/download_diffusion_nemo.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.download import main

    main("download_diffusion_nemo.py")
