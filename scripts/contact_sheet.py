"""Put generated and real frames side by side: `python scripts/contact_sheet.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from cosmos_predict.cli.contact_sheet import main

    main()
