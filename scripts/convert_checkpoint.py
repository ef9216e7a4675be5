"""Convert checkpoint files: `python scripts/convert_checkpoint.py INPUT OUTPUT --to predict2|predict1|diffusers`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.convert_checkpoint import main

    main()
