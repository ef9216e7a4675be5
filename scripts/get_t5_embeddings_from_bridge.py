"""Text embeddings of Bridge episodes: `python scripts/get_t5_embeddings_from_bridge.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.get_t5_embeddings_from_bridge import main

    main()
