"""SynFlow: prune in rounds by how much flows through each weight, without any data.

Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by
iteratively conserving synaptic flow", arXiv 2006.05467. With every parameter replaced
by its absolute value and an input of ones, R is the sum of all outputs and

    S_j = |theta_j| |dR / d|theta_j||.

In a network that is homogeneous in each layer, such as a ReLU network without biases,
the S_j of any layer sum to R. A layer with few weights left thus has high scores, and
with scores computed anew in each of T rounds it is not emptied before the others.

**Range.** R grows with depth by about sqrt(fan_in) a layer and leaves float32. Where
it does, the input is multiplied by c = 2^e and R by c as well. If the network is
homogeneous in its input, f(c x) = c f(x), as ReLU networks with or without shortcuts
are once biases are 0, every score is multiplied by the same c^2, whatever the layer:
the order stays as it is. Powers of two make it exact. Activations and gradients with
respect to them then start from c, so that R may be anything from about 2^-240 to
2^240. In a network of biases above 0 a c below 1 gives them more weight. Where the
largest score is finite in float32 and not below 2^-60, c is 1 and changes nothing.

As in the authors' code, biases and scales count with their absolute value too, and
normalization belongs in evaluation mode: `apply_fn` holds its running mean 0 and
variance 1. A branch that starts at a scale of 0, or a head of zeros, has no flow.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import scores
from sparsejax.checks import check_step, is_traced
from sparsejax.initialization.averaging import as_static, weights_of, with_weights
from sparsejax.initialization.budget import Budget, keep_best, keep_budget
from sparsejax.initialization.collapse import warn_of_empty_layers
from sparsejax.masks import apply_masks, dense_masks
from sparsejax.parameters import Prunable, layer_rules

PyTree = Any
ApplyFn = Callable[[PyTree, Any], Any]

_STEP = 30  # powers of two from one scale of the input to the next
_TRIES = 5  # scales from 2^-120 to 2^120


def _wide(leaf: Any) -> Any:
    """Casts floats to float32 at least; other leaves, such as counters, stay."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def _absolute(leaf: Any) -> Any:
    wide = _wide(leaf)
    return jnp.abs(wide) if jnp.issubdtype(wide.dtype, jnp.floating) else wide


def _flow(apply_fn: ApplyFn, params: PyTree, inputs: PyTree, masks: PyTree) -> Any:
    """Returns scores with 1 as the largest, and whether there are any."""
    positive = jax.tree.map(_absolute, apply_masks(params, masks))
    weights = weights_of(positive, masks)

    def ones(leaf: Any, scale: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return _wide(jnp.ones(leaf.shape, leaf.dtype)) * (scale if is_float else 1)

    def at_scale(exponent: jax.Array) -> tuple[PyTree, jax.Array]:
        scale = jnp.ldexp(jnp.float32(1), exponent)

        def total(weights: PyTree) -> jax.Array:
            scaled = jax.tree.map(lambda leaf: ones(leaf, scale), inputs)
            outputs = apply_fn(with_weights(positive, weights, masks), scaled)
            return scale * sum(jnp.sum(_wide(o)) for o in jax.tree.leaves(outputs))

        score = scores.saliency_scores(weights, jax.grad(total)(weights), masks)
        largest = jnp.stack([jnp.max(s, initial=0) for s in jax.tree.leaves(score)])
        return score, jnp.max(largest)  # NaN where any score is not finite

    def is_out_of_range(state: tuple[Any, jax.Array, jax.Array, PyTree]) -> jax.Array:
        tries, exponent, largest, _ = state
        too_small = (largest < 2.0**-60) & (exponent >= 0)
        return (tries < _TRIES) & (jnp.isnan(largest) | too_small)

    def rescale(state: tuple[Any, jax.Array, jax.Array, PyTree]) -> Any:
        tries, exponent, largest, _ = state
        step = jnp.where(jnp.isnan(largest), -_STEP, _STEP)
        exponent = jnp.where(tries == 0, 0, exponent + step)
        score, largest = at_scale(exponent)
        return tries + 1, exponent, largest, score

    none = jax.tree.map(lambda w: jnp.full(w.shape, jnp.nan, jnp.float32), weights)
    start = (jnp.int32(0), jnp.int32(0), jnp.float32(jnp.nan), none)
    _, _, largest, score = jax.lax.while_loop(is_out_of_range, rescale, start)
    return jax.tree.map(lambda s: s / largest, score), largest > 0


def _refuse_without_flow(sound: Any) -> None:
    if not is_traced(sound) and not np.all(sound):
        raise ValueError(
            "apply_fn(|params|, ones) must send something finite from the inputs to "
            "the outputs; got scores that are all 0, or some that are not finite, in "
            f"round {np.argmin(sound)}; look for layers of zeros, or for outputs that "
            "do not depend on the weights, such as those of a softmax."
        )


def synflow_scores(
    apply_fn: ApplyFn, params: PyTree, inputs: PyTree, masks: PyTree
) -> PyTree:
    """Scores weights by the synaptic flow through them, the S_j of this module.

    Args:
        apply_fn: A pure function (params, inputs) -> outputs, arrays of floats.
        params: Parameters; the masks are applied to them here.
        inputs: Arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.
        masks: The masks in force.

    Returns:
        A tree like `masks` of float32 scores, as fractions of the largest.

    Raises:
        ValueError: If all scores are 0, or some not finite. Traced values are not
            looked at.

    Example:
        >>> w, x = jnp.array([[-1.0, 2.0], [4.0, 0.5]]), jnp.zeros((1, 2))
        >>> synflow_scores(lambda w, x: x @ w, w, x, w != 0.5).tolist()
        [[0.25, 0.5], [1.0, 0.0]]
    """
    score, sound = _flow(apply_fn, params, inputs, masks)
    _refuse_without_flow(sound)
    return score


# A tree whose leaves are all hashable, such as rules or shapes, as a static argument.
_Frozen = tuple[Any, tuple[Any, ...]]


def _freeze(tree: PyTree) -> _Frozen:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaves)


@functools.partial(jax.jit, static_argnames=("apply_fn", "inputs", "rules", "rounds"))
def _all_rounds(
    apply_fn: ApplyFn,
    inputs: _Frozen,
    rules: _Frozen,
    rounds: int,
    params: PyTree,
    dense: PyTree,
    budget: Budget,
) -> tuple[PyTree, jax.Array]:
    """Returns the masks, and for each round whether there was any flow."""
    shapes, layers = jax.tree.unflatten(*inputs), jax.tree.unflatten(*rules)

    def one_round(masks: PyTree, index: jax.Array) -> tuple[PyTree, jax.Array]:
        score, sound = _flow(apply_fn, params, shapes, masks)
        return keep_best(score, masks, layers, budget, index), sound

    return jax.lax.scan(one_round, dense, jnp.arange(rounds))


def synflow(
    apply_fn: ApplyFn,
    params: PyTree,
    batches: Iterable[Any],
    key: jax.Array | None,
    sparsity: Any,
    *,
    rounds: int = 100,
    prunable: Prunable = None,
) -> PyTree:
    """Prunes in rounds by synaptic flow; no data are seen.

    Each round is a forward and a backward pass of one input of ones, some more where
    float32 does not hold the flow. The density after round t of T is d^(t/T).

    Args:
        apply_fn: A pure function (params, inputs) -> outputs, in the place where other
            methods take the loss.
        params: The initial weights.
        batches: Inputs: arrays or `jax.ShapeDtypeStruct`, as `apply_fn` takes them. Of
            the first, shapes and dtypes are used and nothing else; one example in it
            is enough.
        key: Unused by SynFlow; every method of the family takes it.
        sparsity: The overall sparsity in [0, 1).
        rounds: T, at least 1; the paper takes 100.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        Masks of exactly round((1 - sparsity) * n) of n prunable weights. Layers left
        without any are named in an `EmptyLayerWarning`.

    Raises:
        ValueError: If an argument is out of range, there are no inputs, or nothing
            finite flows through the network.

    Example:
        >>> w = jnp.array([[-1.0, 2.0], [4.0, 0.5]])
        >>> inputs = jax.ShapeDtypeStruct((1, 2), jnp.float32)
        >>> synflow(lambda w, x: x @ w, w, [inputs], None, 0.5).tolist()
        [[False, True], [True, False]]
    """
    del key
    check_step("rounds", rounds, 1)
    rules = layer_rules(params, prunable)
    budget = keep_budget(params, rules, sparsity, rounds)
    inputs = next(iter(batches), None)
    if inputs is None:
        raise ValueError("batches must hold at least one input; got none.")
    inputs = jax.eval_shape(lambda tree: tree, inputs)
    masks, sound = _all_rounds(
        as_static(apply_fn),
        _freeze(inputs),
        _freeze(rules),
        rounds,
        params,
        dense_masks(params, prunable),
        jax.tree.map(jnp.asarray, budget),
    )
    _refuse_without_flow(sound)
    warn_of_empty_layers(masks, rules)
    return masks
