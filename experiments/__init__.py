"""Experiments, a file per family; each registers recipes by their published names.

A recipe is configuration made by ordinary functions over `cosmos_predict.config`; nothing is built or loaded until it
runs. Imports the package; the package never imports it.
"""
