"""`torchrun -m train ...` and `python -m train ...`: the command lives in `cosmos_predict.cli.train`."""

from cosmos_predict.cli.train import main

if __name__ == "__main__":
    main()
