"""Kept for studies that import it from here; see `experiments.data`."""

from experiments.data import EpochPlan as EpochPlan
from experiments.data import epoch_plan as epoch_plan
from experiments.data import steps_per_epoch as steps_per_epoch
