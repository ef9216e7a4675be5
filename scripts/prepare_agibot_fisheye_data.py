"""Cut AgiBotWorld episodes into a dataset folder: `python scripts/prepare_agibot_fisheye_data.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.prepare_agibot_fisheye_data import main

    main()
