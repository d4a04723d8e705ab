"""Kept for studies that import it from here; see `experiments.checkpoint`."""

from experiments.checkpoint import OPERATIONAL as OPERATIONAL
