"""Gradual magnitude pruning: from dense to sparse along a cubic.

Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878. Every update interval the
weights of smallest magnitude are dropped, to the sparsity

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_end - t_0))^3,

and never come back. Zhu & Gupta prune each layer to s(t); ranking all layers together,
as here by default and in the GraNet paper's GMP, lets layers differ.

Gale et al., "The State of Sparsity in Deep Neural Networks", arXiv 1902.09574, compare
other methods with pruning along this cubic. Their first layer left dense and their last
one less sparse than the others (not verified) are rules of `prunable`.
"""

from typing import Any

import optax

from sparsejax.chain import prune
from sparsejax.checks import check_sparsity, check_within
from sparsejax.methods.start import NOMINAL, gradual_start
from sparsejax.parameters import Prunable
from sparsejax.schedules import Setting, as_schedule, cubic_sparsity, every
from sparsejax.scores import magnitude
from sparsejax.transform import Method, SparseTransformation, sparsify


def gmp_transform(
    inner: optax.GradientTransformation,
    *,
    final_sparsity: Setting | None = None,
    end_step: int,
    update_interval: int,
    total_steps: int | None = None,
    initial_sparsity: float = 0.0,
    begin_step: int = 0,
    scope: str = "global",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Prunes by magnitude from dense to `final_sparsity` while training.

    Masks start dense. Updates are at `begin_step + i * update_interval` for i >= 1 and
    at `end_step`, where the final sparsity is reached to the unit.

    Args:
        inner: The optimizer to wrap.
        final_sparsity: s_f in [0, 1), or a function of the step instead of the cubic;
            leave it out where `prunable` fixes the sparsity of every layer.
        end_step: t_end, the step of the last prune, after `begin_step`.
        update_interval: Steps between prunes, at least 1.
        total_steps: The length of the run, to raise where it ends before `end_step`;
            None if it is not known.
        initial_sparsity: s_i in [0, s_f], where the cubic starts.
        begin_step: t_0, at least 0.
        scope: "global" ranks all layers together, "layer" prunes each to s(t).
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of dense ones.
        seed: Unused by GMP's own rule; see `sparsejax.sparsify`.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp, sparsejax as sj
        >>> tx = sj.gmp_transform(
        ...     optax.sgd(0.1), final_sparsity=0.75, end_step=4, update_interval=2)
        >>> params, state = sj.init_sparse(tx, {"w": jnp.arange(16.0).reshape(4, 4)})
        >>> for _ in range(5):
        ...     updates, state = tx.update({"w": jnp.zeros((4, 4))}, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"][2:].tolist()
        [[0.0, 0.0, 0.0, 0.0], [12.0, 13.0, 14.0, 15.0]]
    """
    if total_steps is not None:
        check_within("end_step", end_step, total_steps)
    s = as_schedule(
        "final_sparsity",
        NOMINAL if final_sparsity is None else final_sparsity,
        check_sparsity,
        lambda s_f: cubic_sparsity(initial_sparsity, s_f, begin_step, end_step),
    )
    s_f, on_grid = s(end_step), every(update_interval, begin_step)
    method = Method(
        first=gradual_start(0.0, None if final_sparsity is None else s_f, "erk"),
        update=prune(magnitude, to=s, scope=scope, final=s_f),
        # After the end these do nothing, unless the prune at the end was left out
        # because a gradient was not finite.
        when=lambda t: on_grid(t) | (t == end_step),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)
