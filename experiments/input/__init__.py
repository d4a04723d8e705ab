"""Kept for studies that import from here; see `experiments.data`."""
