"""Kept for studies that import it from here; see `experiments.record`."""

from experiments.record import Progress as Progress
