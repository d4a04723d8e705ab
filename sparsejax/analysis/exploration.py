"""How much of a network sparse training has tried: the rate R_s of ITOP.

Liu et al., "Do We Actually Need Dense Over-Parameterization? In-Time
Over-Parameterization in Sparse Training", arXiv 2102.02887. With M_t the masks at step
t, and N the number of prunable weights,

    R_s = |M_0 u M_1 u ... u M_T| / N,

the share of the weights that were active at least once. It starts at the density of the
first masks and never falls; it is 1 for whatever starts dense.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Any

from sparsejax.masks import density, union

PyTree = Any


def itop_rate(history: Iterable[PyTree], scope: str = "global") -> Any:
    """Computes R_s, the in-time over-parameterization rate of a run so far.

    Nobody needs to keep all masks: `explored = sparsejax.union(explored, masks)` after
    each topology update, and then `itop_rate([explored])`, give the same.

    Args:
        history: Mask trees that fit each other: those in force one after the other, or
            unions of them. At least one.
        scope: "global" for all layers together, "layer" for each leaf.

    Returns:
        A float32 scalar in [0, 1], or a tree of them like the masks.

    Raises:
        ValueError: If there are no masks, or they do not fit each other.

    Example:
        >>> import jax.numpy as jnp
        >>> first = jnp.array([True, True, False, False])
        >>> then = jnp.array([True, False, True, False])
        >>> itop_rate([first, then]).item()
        0.75
    """
    trees = list(history)
    if not trees:
        raise ValueError("history must hold at least one mask tree; got none.")
    return density(reduce(union, trees), scope)
