"""What others offer for the same step, where it is installed."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import optax

PyTree = Any
Peer = tuple[optax.GradientTransformation, Callable[[PyTree, PyTree], PyTree]]


def jaxpruner(
    method: str, inner: optax.GradientTransformation, interval: int
) -> Peer | None:
    """Wraps an optimizer as JaxPruner does.

    JaxPruner is dormant: it is installed from its repository, with chex, and calls
    `jax.tree_map`, which jax has removed and which is given back here. Its RigL fails
    on parameters that it does not prune: leave them out.

    Args:
        method: The name of a class of JaxPruner's.
        inner: The optimizer to wrap.
        interval: Steps between updates of the masks, the first at step 0.

    Returns:
        The optimizer, and the function (params, opt_state) -> params that its users
        call after each step; None where JaxPruner is not installed.
    """
    if importlib.util.find_spec("jaxpruner") is None:
        return None
    vars(jax).setdefault("tree_map", jax.tree.map)
    package = importlib.import_module("jaxpruner")
    schedule = package.PeriodicSchedule(
        update_freq=interval, update_start_step=0, update_end_step=10**6
    )
    erk = importlib.import_module("jaxpruner.sparsity_distributions").erk
    distribution = functools.partial(erk, sparsity=0.9)
    updater = getattr(package, method)(
        scheduler=schedule, sparsity_distribution_fn=distribution
    )
    return updater.wrap_optax(inner), updater.post_gradient_update
