"""Tests of cosmos_predict.curate."""
