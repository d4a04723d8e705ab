"""Kept for studies that import it from here; see `experiments.parallel`."""

from experiments.parallel import EXIT_PREEMPTED as EXIT_PREEMPTED
from experiments.parallel import Preempted as Preempted
