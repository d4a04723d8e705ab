"""Kept for studies that import it from here; see `experiments.augment`."""

from experiments.augment import PadMode as PadMode
from experiments.augment import check_pad as check_pad
from experiments.augment import normalize

normalise = normalize
