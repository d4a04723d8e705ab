"""What a weight is worth: the scores by which elements of a chain rank weights.

A `Score` is a function of the context, a tree like the masks, with what of it to rank
by: `magnitude`, `gradient`, `random`, and with a memory `momentum` and `mean_gradient`.
The pure functions `magnitude_scores`, `saliency_scores` and `random_scores` need no
context.

A score that is not finite ranks below everything, so that it never wins a place.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import check_range, check_step
from sparsejax.selection import Rank
from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


class Context(NamedTuple):
    """What an element of a chain sees; one leaf is one layer in all its trees.

    Attributes:
        step: int32 scalar, the number of steps before this one.
        key: PRNG key for this step's random choices.
        masks: The masks as the element before has left them.
        params: The parameters at this step.
        grads: The dense gradients at this step.
        rules: A `LayerRule` at each prunable leaf, known when the step is compiled.
        when: The method's function step -> bool: the steps at which masks change.
        before: The masks in force, before the chain.
        memory: What this element or score remembers, this step's gradients observed.
    """

    step: jax.Array
    key: jax.Array
    masks: PyTree
    params: PyTree
    grads: PyTree
    rules: PyTree
    when: Callable[[Any], Any]
    before: PyTree = ()
    memory: PyTree = ()


def no_memory(params: PyTree, rules: PyTree) -> tuple[()]:
    """Starts what remembers nothing.

    Args:
        params: The parameters.
        rules: A `LayerRule` at each prunable leaf.

    Returns:
        ().
    """
    del params, rules
    return ()


class Score(NamedTuple):
    """What weights are ranked by: the lowest are dropped, the highest grown.

    Attributes:
        of: `Context` -> a tree like the masks.
        rank: What of it to rank by, applied in each pass; see `sparsejax.top_k_mask`.
        init: (params, rules) -> memory. Trees like the parameters must be made by
            mapping over the two, so that `optax.tree.map_params` finds them.
        update: `Context` -> memory, called at every step, before masks change. It must
            work weight by weight: stacked layers are not taken apart for it. None for a
            memory that stays.
        dense_gradients: At how many steps up to an update it reads gradients of
            inactive weights; None for all steps. Only `training_flops` asks.
    """

    of: Callable[[Context], PyTree]
    rank: Rank = None
    init: Callable[[PyTree, PyTree], PyTree] = no_memory
    update: Callable[[Context], PyTree] | None = None
    dense_gradients: int | None = 1


def finite(score: jax.Array) -> jax.Array:
    """Replaces infinite scores by NaN, the lowest rank.

    Args:
        score: A float array of any shape.

    Returns:
        The array with NaN at each infinite entry.

    Example:
        >>> finite(jnp.array([1.0, -jnp.inf])).tolist()
        [1.0, nan]
    """
    return jnp.where(jnp.isfinite(score), score, jnp.nan)


def absolute(score: jax.Array) -> jax.Array:
    """Returns absolute values, with NaN at each infinite entry.

    Args:
        score: A float or integer array of any shape.

    Returns:
        The array of the same dtype.

    Example:
        >>> absolute(jnp.array([-1.0, -jnp.inf])).tolist()
        [1.0, nan]
    """
    is_float = jnp.issubdtype(score.dtype, jnp.floating)
    return finite(jnp.abs(score)) if is_float else jnp.abs(score)


def rank_of_magnitude(score: jax.Array) -> jax.Array:
    """Returns integers in the order of absolute values, to rank by.

    It ranks like `absolute` and takes half the instructions: the bits of a float
    without its sign are its rank.

    Args:
        score: A float or integer array of any shape.

    Returns:
        Signed integers of the same size in bytes, -1 where a float is not finite.

    Example:
        >>> ranks = rank_of_magnitude(jnp.array([-2.0, 1.0, jnp.inf]))
        >>> bool(ranks[0] > ranks[1] > ranks[2])
        True
    """
    if not jnp.issubdtype(score.dtype, jnp.floating):
        return jnp.abs(score)
    integer = jnp.dtype(f"int{8 * score.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(score, integer) & jnp.iinfo(integer).max
    infinity = np.array(np.inf, score.dtype).view(integer)
    return jnp.where(bits < infinity, bits, -1)


def as_it_is(score: jax.Array) -> jax.Array:
    """Returns integers that are ranks already, none of them the lowest.

    Args:
        score: An int32 array of any shape.

    Returns:
        The array.
    """
    return score


def magnitude_scores(tree: PyTree, masks: PyTree) -> PyTree:
    """Scores by absolute value: |w| to prune by, |dL/dw| to grow by.

    Args:
        tree: Parameters or gradients, like the masks.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of scores in the dtype of `tree`.

    Example:
        >>> magnitude_scores(jnp.array([-2.0, 1.0]), jnp.array([True, True])).tolist()
        [2.0, 1.0]
    """
    return map_masked(lambda mask, leaf: absolute(leaf), masks, tree)


def saliency_scores(params: PyTree, grads: PyTree, masks: PyTree) -> PyTree:
    """Scores by |w dL/dw|, the first-order change of the loss when w is removed.

    Args:
        params: Parameters, like the masks.
        grads: Gradients, like the masks.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of float32 scores.

    Example:
        >>> ones, grads = jnp.array([True, True]), jnp.array([1.0, 0.5])
        >>> saliency_scores(jnp.array([-2.0, 1.0]), grads, ones).tolist()
        [2.0, 0.5]
    """

    def score(mask: jax.Array, weight: jax.Array, grad: jax.Array) -> jax.Array:
        return finite(jnp.abs(weight.astype(jnp.float32) * grad.astype(jnp.float32)))

    return map_masked(score, masks, params, grads)


def random_scores(key: jax.Array, masks: PyTree) -> PyTree:
    """Scores at random, the same on every device and in every sharding.

    The key is folded with each leaf's path, never with a device index.

    Args:
        key: A JAX PRNG key.
        masks: The mask tree that says which leaves are scored.

    Returns:
        A tree like `masks` of int32 scores with 31 random bits, from 0 up.
    """
    scores = []
    for path, mask in mask_leaves(masks).items():
        leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        bits = jax.random.bits(leaf_key, mask.shape, jnp.uint32)
        scores.append((bits >> 1).astype(jnp.int32))
    return jax.tree.unflatten(jax.tree.structure(masks), scores)


#: Scores weights by the magnitude of the parameters.
magnitude = Score(lambda ctx: ctx.params, rank_of_magnitude, dense_gradients=0)
#: Scores weights by the magnitude of the dense gradients of the step.
gradient = Score(lambda ctx: ctx.grads, rank_of_magnitude)
#: Scores weights at random, by the key of the state and the step.
random = Score(
    lambda ctx: random_scores(ctx.key, ctx.masks), as_it_is, dense_gradients=0
)


def _zeros(params: PyTree, rules: PyTree) -> PyTree:
    """Sums of many gradients are kept in float32 or wider."""

    def zeros(rule: Any, leaf: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.zeros_like(leaf, dtype=dtype)

    return map_masked(zeros, rules, params)


def momentum(decay: float = 0.9) -> Score:
    """Ranks by |m|, m <- decay m + (1 - decay) dL/dw, of inactive weights too.

    The momentum of a wrapped optimizer knows nothing of inactive weights.

    Args:
        decay: In [0, 1), how much of the running mean stays at a step.

    Returns:
        The score; it takes a float32 for each prunable weight.

    Raises:
        ValueError: If `decay` is out of range.
    """
    check_range("momentum", decay, lambda a: 0 <= a < 1, "in [0, 1)")

    def update(ctx: Context) -> PyTree:
        def blend(rule: Any, mean: jax.Array, grad: jax.Array) -> jax.Array:
            return decay * mean + (1 - decay) * grad.astype(mean.dtype)

        return map_masked(blend, ctx.rules, ctx.memory, ctx.grads)

    return Score(lambda ctx: ctx.memory, rank_of_magnitude, _zeros, update, None)


def mean_gradient(steps: int) -> Score:
    """Ranks by the magnitude of the mean gradient over the steps up to an update.

    One batch's gradient is noisy where batches are small. Not in the papers.

    Args:
        steps: How many steps, the update step the last of them; gradients from before
            the previous update do not count.

    Returns:
        The score; it takes a float32 for each prunable weight.

    Raises:
        ValueError: If `steps` is not an integer of at least 1.
    """
    check_step("steps", steps, 1)

    def init(params: PyTree, rules: PyTree) -> PyTree:
        return _zeros(params, rules), jnp.zeros([], jnp.int32)

    def update(ctx: Context) -> PyTree:
        sums, last = ctx.memory
        window = jnp.arange(steps)
        counts = jnp.any(jax.vmap(ctx.when)(ctx.step + window))
        # Also if the step right after an update was left out, as it was not finite.
        past = ctx.step - 1 - window
        anew = jnp.any(jax.vmap(ctx.when)(past) & (past >= last))

        def add(rule: Any, total: jax.Array, grad: jax.Array) -> jax.Array:
            total = jnp.where(anew, 0, total)
            return total + jnp.where(counts, grad.astype(total.dtype), 0)

        return map_masked(add, ctx.rules, sums, ctx.grads), ctx.step

    return Score(lambda ctx: ctx.memory[0], rank_of_magnitude, init, update, steps)
