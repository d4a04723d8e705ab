"""Kept for studies that import it from here; see `experiments.data`."""

from experiments.data import load_dataset as load_dataset
