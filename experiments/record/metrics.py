"""Kept for studies that import it from here; see `experiments.record`."""

from experiments.record import read_metrics as read_metrics
