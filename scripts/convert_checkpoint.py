"""Convert checkpoint files: python scripts/convert_checkpoint.py INPUT OUTPUT --to predict2|predict1|diffusers."""

from cosmos_predict.cli.convert_checkpoint import main

if __name__ == "__main__":
    main()
