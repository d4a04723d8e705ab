"""Kept for studies that import it from here; see `experiments.files`."""

from experiments.files import differences as differences
