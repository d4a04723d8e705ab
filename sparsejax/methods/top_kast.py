"""Top-KAST: always sparse, forward and backward, over parameters that stay dense.

Jayakumar et al., "Top-KAST: Top-K Always Sparse Training", arXiv 2106.03517. Each layer
has dense parameters theta. Every N steps two masks are taken from their magnitudes,

    A = the D largest |theta|,          the weights that the network runs on,
    B = the D + M largest, so B >= A,   the weights that are trained,

as fractions of the layer. The network runs on alpha = theta on A and 0 elsewhere;
theta takes the gradient with respect to alpha on B and stays as it is elsewhere. A
weight of B outside A is trained though it is 0 in the network, and enters A once it is
large enough. An exploration penalty keeps those in A from staying by their size alone,

    lambda / 2 (|theta_A|^2 + |theta_{B - A}|^2 / D).

Gradients are needed on B alone. The paper's text was not at hand for this file: the
penalty's form, its factor 1 / D above all, is from memory and not verified, and so are
N of some 100 steps and the same D in every layer.

theta lives in the user's `params`, with values outside A, and the network runs on
`top_kast_params(params, opt_state)`:

    def loss(params, opt_state, batch):
        return model_loss(top_kast_params(params, opt_state), batch)

    grads = jax.grad(loss)(params, opt_state, batch)  # 0 outside B

Chosen here: what the optimizer remembers lives on B alone, as a sparse implementation
would store it. It is reset when a weight leaves B; a weight that enters B keeps its
theta and starts as a new weight does in `sparsejax.slots`. Masks simulate sparsity:
theta, its gradient and the optimizer state are stored dense.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.checks import check_range, check_sparsity, check_step
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import apply_masks, counts_by_rule
from sparsejax.parameters import (
    LayerRule,
    Prunable,
    join_layers,
    layer_rules,
    split_layers,
    split_rules,
)
from sparsejax.selection import top_k_mask
from sparsejax.slots import reset_slots
from sparsejax.trees import (
    fit,
    is_left_dense,
    is_placeholder,
    map_masked,
    merge,
    own_buffers,
)

PyTree = Any


class TopKastState(NamedTuple):
    """The state of `top_kast_transform`.

    Attributes:
        step: int32 scalar, updates made so far.
        forward: A, the masks of the weights that the network runs on.
        backward: B, the masks of the weights that are trained.
        inner_state: The wrapped optimizer's state.
    """

    step: jax.Array
    forward: PyTree
    backward: PyTree
    inner_state: PyTree


def top_kast_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float,
    backward_sparsity: float,
    update_interval: int,
    exploration: float,
    distribution: Distribution = "uniform",
    prunable: Prunable = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains the largest weights of dense parameters; use it with `top_kast_params`.

    Masks are taken at the start and, from the parameters as they are by then, before
    the steps that are multiples of `update_interval`.

    Args:
        inner: The optimizer to wrap. It sees gradients and parameters on B alone.
        sparsity: 1 - D in [0, 1), of the network.
        backward_sparsity: 1 - (D + M) in [0, sparsity], of what is trained. A layer
            whose sparsity `prunable` fixes trains no more than it runs on.
        update_interval: N, steps between new masks, at least 1.
        exploration: lambda, at least 0: the penalty's gradient is added to the
            gradients, so leave weight decay on these layers out of `inner`.
        distribution: Of both sparsities over layers: "uniform", "erk",
            "er", or a function; see `sparsejax.layer_counts`.
        prunable: Which leaves get masks; see `sparsejax.layer_rules`.

    Returns:
        An optax transformation. Its `update` needs `params`, and leaves weights
        outside B where they are.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.top_kast_transform(optax.sgd(0.5), sparsity=0.75,
        ...     backward_sparsity=0.5, update_interval=2, exploration=0.0)
        >>> params = jnp.array([[4.0, 3.0], [2.0, 1.0]])
        >>> state = tx.init(params)
        >>> grads = jax.grad(lambda p: sj.top_kast_params(p, state).sum())(params)
        >>> updates, state = tx.update(grads, state, params)
        >>> params = optax.apply_updates(params, updates)
        >>> params.tolist(), sj.top_kast_params(params, state).tolist()
        ([[3.5, 2.5], [2.0, 1.0]], [[3.5, 0.0], [0.0, 0.0]])
    """
    check_sparsity("sparsity", sparsity)
    check_sparsity("backward_sparsity", backward_sparsity)
    if backward_sparsity > sparsity:
        raise ValueError(
            f"backward_sparsity must be at most sparsity={sparsity}, as what the "
            f"network runs on is trained; got {backward_sparsity}."
        )
    check_step("update_interval", update_interval, 1)
    check_range(
        "exploration", exploration, lambda x: 0 <= x < float("inf"), "0 or above"
    )
    check_distribution(distribution)
    inner = optax.with_extra_args_support(inner)

    def largest(params: PyTree) -> tuple[PyTree, PyTree]:
        """A and B."""
        rules = layer_rules(params, prunable)
        layers, split = split_rules(rules, params), split_layers(params, rules)
        score = scores.magnitude_scores(split, layers)
        few, more = (
            counts_by_rule(split, layers, s, distribution)
            for s in (sparsity, backward_sparsity)
        )
        # Counts rounded to two different totals might not be in order in every layer.
        more = jax.tree.map(max, few, more)
        forward, backward = (
            join_layers(top_k_mask(score, counts, scope="layer"), rules)
            for counts in (few, more)
        )
        return forward, backward

    def penalized(grads: PyTree, state: TopKastState, params: PyTree) -> PyTree:
        rules = layer_rules(params, prunable)

        def add(rule: Any, forward: Any, grad: Any, theta: Any) -> Any:
            if is_left_dense(rule):
                return grad
            strength = jnp.where(forward, 1.0, 1 / _density(forward, rule))
            return grad + (exploration * strength * theta).astype(grad.dtype)

        return jax.tree.map(
            add, rules, state.forward, grads, params, is_leaf=is_left_dense
        )

    def init_fn(params: PyTree) -> TopKastState:
        placeholder = is_placeholder(params)
        forward, backward = (params, params) if placeholder else largest(params)
        state = TopKastState(
            step=jnp.zeros([], jnp.int32),
            forward=forward,
            backward=backward,
            inner_state=inner.init(
                params if placeholder else apply_masks(params, backward)
            ),
        )
        return own_buffers(state, others=params)

    def update_fn(
        updates: PyTree,
        state: TopKastState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, TopKastState]:
        grads = updates
        if params is None:
            raise ValueError(
                "params must be given to update, tx.update(grads, state, params): "
                "masks are taken from the weights; got None."
            )
        fit(state.backward, grads, "grads")
        state = state._replace(
            forward=fit(state.forward, params), backward=fit(state.backward, params)
        )
        if exploration:
            grads = penalized(grads, state, params)
        inner_updates, inner_state = inner.update(
            apply_masks(grads, state.backward),
            state.inner_state,
            apply_masks(params, state.backward),
            **extra_args,
        )
        moves = apply_masks(inner_updates, state.backward)
        step = optax.safe_increment(state.step)
        is_due = step % update_interval == 0
        forward, backward = jax.lax.cond(
            is_due,
            lambda: largest(optax.apply_updates(params, moves)),
            lambda: (state.forward, state.backward),
        )
        stays = map_masked(jnp.logical_and, state.backward, backward)
        inner_state = reset_slots(inner, inner_state, params, stays, backward, is_due)
        return moves, TopKastState(step, forward, backward, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _density(forward: jax.Array, rule: LayerRule) -> jax.Array:
    """D of each layer, shaped to broadcast over the leaf."""
    axes = tuple(range(int(rule.stacked), forward.ndim))
    count = jnp.sum(forward, axes, dtype=jnp.int32, keepdims=True)
    size = forward.size // (forward.shape[0] if rule.stacked else 1)
    return jnp.maximum(count, 1) / size


def top_kast_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """Returns alpha, the sparse parameters that the network runs on.

    Its derivative is that of the identity on B and 0 elsewhere: differentiate the loss
    through it. It serves for evaluation too.

    Args:
        params: theta, dense.
        opt_state: The state of a transformation with `top_kast_transform` in it.

    Returns:
        Parameters with exact zeros outside A; leaves left dense as they are.

    Raises:
        ValueError: If there is no such state, or its masks do not fit.
    """
    forward, backward = top_kast_masks(opt_state)
    forward, backward = fit(forward, params), fit(backward, params)

    def run_on(a: Any, b: Any, theta: Any) -> Any:
        if is_left_dense(a):
            return theta
        # What is trained and not run on is taken away again, where no gradient sees it.
        explored = jnp.where(b & ~a, theta, 0)
        return jnp.where(b, theta, 0) - jax.lax.stop_gradient(explored)

    return jax.tree.map(run_on, forward, backward, params, is_leaf=is_left_dense)


def top_kast_masks(opt_state: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the masks in an optimizer state, wherever they are nested.

    Args:
        opt_state: The state of a transformation with `top_kast_transform` in it. With
            several, as in `optax.partition`, their masks are put together.

    Returns:
        (A, B), mask trees: what the network runs on, and what is trained.

    Raises:
        ValueError: If there are no masks, or two for the same leaf.
    """
    is_ours = lambda node: isinstance(node, TopKastState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_ours)
    found = [node for node in nodes if is_ours(node)]
    if not found:
        raise ValueError(
            "opt_state must hold the state of top_kast_transform; got "
            f"{type(opt_state).__name__} without any."
        )
    forward = merge(*(node.forward for node in found))
    return forward, merge(*(node.backward for node in found))
