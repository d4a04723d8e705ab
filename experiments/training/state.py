"""Kept for studies that import it from here; see `experiments.step`."""

from typing import Any

from experiments.step import TrainState as TrainState
from experiments.step import create_state as create_state


def mapped_fields(state: Any) -> Any:
    """Returns the axes by which states at the same step are stacked: all but the step.

    By a step on the mapped axis, both sides of a conditional would be computed at every
    step.

    Example:
        >>> mapped_fields(TrainState).step, mapped_fields(TrainState).params
        (None, 0)
    """
    return state._make(None if name == "step" else 0 for name in state._fields)
