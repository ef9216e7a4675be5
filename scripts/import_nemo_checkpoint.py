"""Import a distributed NeMo checkpoint (best effort): `python scripts/import_nemo_checkpoint.py FOLDER model.pt`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.import_nemo_checkpoint import main

    main()
