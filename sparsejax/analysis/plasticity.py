"""Pruning plasticity: how well a network recovers when it is pruned at some point.

Liu et al., `Sparse Training via Boosting Pruning Plasticity with Neuroregeneration
<https://arxiv.org/abs/2106.10404>`_, 2021. A trained network is pruned once, given new
connections or not, and trained on with its masks fixed. With the test accuracies

    t_PRE       before pruning,
    t_PRUNE     straight after it,
    t_CONTRAIN  after k more epochs,

plasticity is t_CONTRAIN - t_PRE, and what was recovered t_CONTRAIN - t_PRUNE.

    kept = prune_once(params, masks, 0.9, scope="global")
    params = apply_masks(params, kept)  # what is regenerated restarts from 0
    masks = regenerate(grads, kept, masks)

A unit is a single weight, or a filter: all weights of one output of a kernel, worth the
L1 norm of its weights or of their gradients.

What the official code's `--sparse-init prune_*` and `prune_and_grow_*` do, and the
differences:

- Counts of weights are theirs: by layer ceil(rate * active) are dropped, globally
  int((1 - rate) * active) are kept. So are those of filters: int(rate * active) are
  dropped. Active is what masks say; theirs goes by the values, so that a weight that
  happens to be 0 counts as pruned.
- Regeneration is by layer, also after global pruning: each layer gets back as many
  units as it lost. From a dense network that is all of them: the masks are dense again,
  the pruned weights restart from 0, and gradients have nothing to choose from. That
  shows what pruned weights are worth if they may come back, at another density than
  pruning without regeneration. GraNet itself regenerates at equal density, which their
  code for plasticity does not do. Here it is the same two steps once more:
  `fewer = prune_once(params, kept, 0.5)`, `regenerate(grads, fewer, kept)`.
- Ties are broken by position. Theirs keeps all weights tied at a global threshold, and
  can grow active weights where fewer gradients are not 0 than it grows.
- Theirs does not prune filters globally; see `prune_once` for how they are ranked.
- Theirs prunes the classifier's filters too, which are classes: give masks without it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from sparsejax import scores
from sparsejax.checks import SCOPES, check_choice, check_fraction, is_traced
from sparsejax.masks import count_active, difference, union
from sparsejax.parameters import LayerRule, axis_rules
from sparsejax.patterns import by_neuron, from_neurons
from sparsejax.topology import prune_by_score, prune_magnitude, regrow_by_score
from sparsejax.trees import fit, map_masked

PyTree = Any
UNITS = ("weight", "filter")


def prune_once(
    params: PyTree,
    masks: PyTree,
    rate: float,
    *,
    scope: str = "layer",
    unit: str = "weight",
) -> PyTree:
    """Prunes a network to a rate in one shot, by magnitude.

    Args:
        params: Parameters that the masks fit.
        masks: The masks in force, dense ones for a dense network.
        rate: The fraction of the active units to drop, in (0, 1), known now:
            ceil(rate * active) weights, or int(rate * active) filters.
        scope: "layer" ranks and counts each layer by itself, "global" all together.
            Globally, the L1 norms of filters are divided by their number of weights,
            or layers of small filters would go first, and whole.
        unit: "weight" or "filter".

    Returns:
        The new masks, a subset of the old.

    Raises:
        ValueError: If an argument is out of range, or the masks do not fit.

    Example:
        >>> kernel = jnp.array([[4.0, 1.0, -3.0, 0.0], [4.0, 2.0, 0.0, -5.0]])
        >>> dense = jnp.ones((2, 4), bool)
        >>> prune_once(kernel, dense, 0.5).astype(int).tolist()
        [[1, 0, 1, 0], [1, 0, 0, 1]]
        >>> prune_once(kernel, dense, 0.5, unit="filter").astype(int).tolist()
        [[1, 0, 0, 1], [1, 0, 0, 1]]
    """
    check_choice("unit", unit, UNITS)
    check_choice("scope", scope, SCOPES)
    if is_traced(rate):
        raise ValueError(
            "rate must be known when the program is compiled, in (0, 1); got a traced "
            "value."
        )
    check_fraction("rate", rate)
    masks = fit(masks, params)
    if unit == "weight":
        return prune_magnitude(params, masks, fraction=float(rate), scope=scope)
    filters = _active_filters(masks)
    keep = _kept_filters(filters, float(rate), scope)
    norms = _filter_norms(params, masks)
    if scope == "global":
        norms = map_masked(lambda m, norm: norm * norm.size / m.size, masks, norms)
    return _spread(prune_by_score(norms, filters, keep=keep, scope=scope), masks)


def regenerate(
    grads: PyTree, masks: PyTree, before: PyTree, *, unit: str = "weight"
) -> PyTree:
    """Grows as many units as pruning has dropped in each layer, by gradient magnitude.

    Args:
        grads: Dense gradients of the loss.
        masks: The masks after pruning.
        before: The masks before it. Units that were inactive then can grow too.
        unit: "weight" or "filter".

    Returns:
        The new masks, in each layer with as many active units as `before`. What they
        have beyond `masks` is new and starts from 0; a filter grows whole.

    Raises:
        ValueError: If there is no such unit, or the trees do not fit.

    Example:
        >>> grads = jnp.array([9.0, 1.0, 2.0, -7.0])
        >>> before = jnp.array([True, True, True, False])
        >>> regenerate(grads, jnp.array([True, False, False, False]), before)
        Array([ True, False,  True,  True], dtype=bool)
    """
    check_choice("unit", unit, UNITS)
    masks = fit(masks, grads, "grads")
    before = fit(before, grads, "grads")
    if unit == "weight":
        lost, rank = _lost(before, masks), scores.rank_of_magnitude
        return regrow_by_score(grads, masks, lost, rank=rank)
    filters = _active_filters(masks)
    lost = _lost(_active_filters(before), filters)
    everywhere = map_masked(jnp.ones_like, masks)
    after = regrow_by_score(_filter_norms(grads, everywhere), filters, lost)
    grown = _spread(difference(after, filters), everywhere)
    return union(masks, grown)


def _active_filters(masks: PyTree) -> PyTree:
    """Marks the filters with an active weight: a mask tree of one entry a filter."""
    return map_masked(
        lambda rule, mask: jnp.any(by_neuron(mask, rule), axis=0),
        axis_rules(masks),
        masks,
    )


def _filter_norms(tree: PyTree, masks: PyTree) -> PyTree:
    """The L1 norms of filters over their active weights, in float32 or wider."""

    def norm(rule: LayerRule, mask: jax.Array, leaf: jax.Array) -> jax.Array:
        magnitude = scores.absolute(leaf)
        wide = magnitude.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return jnp.sum(by_neuron(jnp.where(mask, wide, 0), rule), axis=0)

    return map_masked(norm, axis_rules(masks), masks, tree)


def _kept_filters(filters: PyTree, rate: float, scope: str) -> Any:
    """How many filters stay when int(rate * active) go, of each layer or of all."""

    def keep(active: jax.Array, most: int) -> jax.Array:
        # The number of active filters may be known only in the compiled program; what
        # stays of each number is known now, in float64.
        each = np.array([n - int(rate * n) for n in range(most + 1)], np.int32)
        return jnp.asarray(each)[active]

    active = count_active(filters, scope)
    if scope == "global":
        return keep(active, sum(mask.size for mask in jax.tree.leaves(filters)))
    return map_masked(lambda mask, n: keep(n, mask.size), filters, active)


def _spread(filters: PyTree, masks: PyTree) -> PyTree:
    """The masks without the weights of filters that are marked False."""

    def spread(rule: LayerRule, mask: jax.Array, chosen: jax.Array) -> jax.Array:
        return from_neurons(by_neuron(mask, rule) & chosen, rule, mask.shape)

    return map_masked(spread, axis_rules(masks), masks, filters)


def _lost(before: PyTree, after: PyTree) -> PyTree:
    counts = count_active(before, "layer"), count_active(after, "layer")
    return jax.tree.map(jnp.subtract, *counts)


class Plasticity(NamedTuple):
    """What a network has made of being pruned; in the unit of the accuracies.

    Attributes:
        change: Accuracy after continuing minus before pruning, the paper's plasticity.
        recovered: Accuracy after continuing minus straight after pruning.
    """

    change: Any
    recovered: Any


def pruning_plasticity(before: Any, pruned: Any, continued: Any) -> Plasticity:
    """Computes pruning plasticity.

    Args:
        before: Accuracy before pruning, a number or an array.
        pruned: Accuracy straight after it, of the same shape.
        continued: Accuracy after k more epochs, of the same shape.

    Returns:
        The two differences, float64 of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> change, recovered = pruning_plasticity(90.0, 35.0, 88.5)
        >>> float(change), float(recovered)
        (-1.5, 53.5)
    """
    arrays = [np.asarray(each, np.float64) for each in (before, pruned, continued)]
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(
            "before, pruned and continued must have one shape; got "
            f"{[array.shape for array in arrays]}."
        )
    first, straight_after, last = arrays
    return Plasticity(change=last - first, recovered=last - straight_after)


class Estimate(NamedTuple):
    """A mean with its confidence interval, mean - half_width to mean + half_width.

    Attributes:
        mean: The mean.
        half_width: Half the width of the interval.
        samples: How many values it is the mean of.
    """

    mean: float
    half_width: float
    samples: int


def mean_with_interval(values: Any, confidence: float = 0.95) -> Estimate:
    """Estimates a mean from independent values, such as one a seed, by Student's t.

    For the effect of a choice give the differences, paired by seed.

    Args:
        values: At least two finite numbers.
        confidence: The probability that the interval covers the mean, in (0, 1), for
            values from a normal distribution.

    Returns:
        The mean and t(confidence, n - 1) * deviation / sqrt(n).

    Raises:
        ValueError: If there are too few values, one is not finite, or the confidence
            is out of range.

    Example:
        >>> estimate = mean_with_interval([1.0, 2.0, 3.0])
        >>> f"{estimate.mean:.2f} ± {estimate.half_width:.2f}"
        '2.00 ± 2.48'
    """
    check_fraction("confidence", confidence)
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(
            f"values must be two or more finite numbers; got {sample.tolist()}."
        )
    quantile = float(stdtrit(sample.size - 1, (1 + confidence) / 2))
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Estimate(float(sample.mean()), quantile * error, int(sample.size))
