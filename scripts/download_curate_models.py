"""Download the models of curation: `python scripts/download_curate_models.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.download import main

    main("download_curate_models.py")
