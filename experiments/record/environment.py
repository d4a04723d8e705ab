"""Kept for studies that import it from here; see `experiments.record`."""

from experiments.record import describe_environment as describe_environment
