"""Kept for studies that import it from here; see `experiments.step`."""

from experiments.step import make_eval_step as make_eval_step
from experiments.step import make_train_step as make_train_step
