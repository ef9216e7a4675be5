"""Golden cases: numbers of an independent implementation that pin our mathematics and key names (README of the cases in `run_case.py`)."""
