"""What a dataset holds, and what is unusable: `python scripts/check_dataset.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.check_dataset import main

    main()
