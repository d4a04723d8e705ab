"""Static sparse training: random masks that never change."""

from typing import Any

import optax

from sparsejax.distributions import Distribution
from sparsejax.methods.start import start_at
from sparsejax.parameters import Prunable
from sparsejax.transform import Method, SparseTransformation, sparsify


def static_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains under masks that stay as they were drawn or given.

    The baseline of every sparse-training paper, and the way to train under masks found
    elsewhere, such as by pruning at initialization.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1) of random masks; leave it out with `masks`.
        distribution: The sparsity's distribution over layers: "erk", "er",
            "uniform", or a function; see `sparsejax.layer_counts`.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to train under, instead of random ones.
        seed: Seed of the random masks.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If not exactly one of `sparsity` and `masks` is given, or one is out
            of range.

    Example:
        >>> import jax.numpy as jnp, sparsejax as sj
        >>> tx = sj.static_transform(optax.sgd(0.1), sparsity=0.75)
        >>> params, opt_state = sj.init_sparse(tx, {"w": jnp.ones((8, 8))})
        >>> sj.count_active(sj.get_masks(opt_state)).item()
        16
    """
    method = Method(first=start_at(sparsity, distribution, masks, prunable))
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
