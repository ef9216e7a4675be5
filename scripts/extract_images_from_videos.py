"""An image dataset from every N-th frame of a video dataset: `python scripts/extract_images_from_videos.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.extract_images_from_videos import main

    main()
