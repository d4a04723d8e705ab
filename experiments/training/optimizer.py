"""Kept for studies that import it from here; see `experiments.optimizer`."""

from experiments.optimizer import SCHEDULES as SCHEDULES
from experiments.optimizer import learning_rate as learning_rate
from experiments.optimizer import make_optimizer as make_optimizer
