"""Make an image from text: `python inference/text2image.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.generation import main

    main("text2image")
