"""AC/DC: dense and sparse phases of training take turns.

Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural
Networks", arXiv 2106.12379. Training starts dense. At the first step of each sparse
(compressed) phase the weights of largest |w| of all layers together are kept, to the
sparsity s, and the masks stay for the phase; at the first step of each dense
(decompressed) phase every pruned weight comes back, from 0. The last phase is sparse
and longer than the others. In the official configuration for ResNet-50 on ImageNet, in
epochs: dense to 10, sparse and dense in turns of 5 from 10 to 75, dense to 85, sparse
to 100.

What differs from the official code: counts are exact and ties are broken by position;
what the optimizer remembers is reset for the weights that come back, not for all; a
weight that comes back takes its first step one step later, as every grown weight here.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.chain import Element, prune
from sparsejax.checks import check_sparsity, check_step, check_within
from sparsejax.methods.start import NOMINAL, gradual_start
from sparsejax.parameters import Prunable
from sparsejax.scores import Context, magnitude
from sparsejax.transform import Method, SparseTransformation, sparsify
from sparsejax.trees import map_masked


def acdc_phases(
    total_steps: int,
    *,
    warm_up_steps: int,
    phase_steps: int,
    last_dense_steps: int,
    last_sparse_steps: int,
) -> tuple[int, ...]:
    """Lays out a run as the paper does: dense, then in turns, a long sparse end.

    Args:
        total_steps: The length of the run.
        warm_up_steps: The length of the dense phase at the start, at least 1.
        phase_steps: The length of each phase between warm-up and the last two. There
            must be room for an odd number of them: the first and the last are sparse.
        last_dense_steps: The length of the last dense phase, at least 1.
        last_sparse_steps: The length of the sparse phase at the end, at least 1.

    Returns:
        The first step of every phase but the warm-up, for `acdc_transform`.

    Raises:
        ValueError: If a length is below 1, or the phases do not fill the run.

    Example:
        >>> acdc_phases(100, warm_up_steps=10, phase_steps=5,
        ...             last_dense_steps=10, last_sparse_steps=15)
        (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85)
    """
    lengths = {
        "total_steps": total_steps,
        "warm_up_steps": warm_up_steps,
        "phase_steps": phase_steps,
        "last_dense_steps": last_dense_steps,
        "last_sparse_steps": last_sparse_steps,
    }
    for name, length in lengths.items():
        check_step(name, length, 1)
    last_sparse = total_steps - last_sparse_steps
    last_dense = last_sparse - last_dense_steps
    turns, rest = divmod(last_dense - warm_up_steps, phase_steps)
    if turns < 1 or turns % 2 == 0 or rest:
        raise ValueError(
            "total_steps must leave room for an odd number of phases of "
            f"phase_steps={phase_steps} between warm-up and the last two; got "
            f"total_steps={total_steps}, which leaves {last_dense - warm_up_steps} "
            "steps."
        )
    return (*range(warm_up_steps, last_dense + 1, phase_steps), last_sparse)


def acdc_transform(
    inner: optax.GradientTransformation,
    *,
    final_sparsity: float | None = None,
    phases: Sequence[int],
    total_steps: int | None = None,
    scope: str = "global",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains in dense and sparse phases in turn.

    Masks change at the first step of a phase. If a gradient is not finite at that step,
    the change is left out and counted in the state's `skipped`, and the phase before
    goes on; wrapped in `optax.apply_if_finite`, the change waits for a finite gradient.

    Args:
        inner: The optimizer to wrap.
        final_sparsity: s in [0, 1), the sparsity of every sparse phase; leave it out
            where `prunable` fixes the sparsity of every layer.
        phases: The first step of each phase after the dense start, increasing, at least
            1: of a sparse phase, a dense one, a sparse one, ... With an odd number of
            them the run ends sparse. `acdc_phases` lays them out.
        total_steps: The length of the run, to raise where it ends before the last phase
            begins; None if it is not known.
        scope: "global" ranks all layers together, "layer" prunes each to s.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of dense ones, up to the first dense phase.
        seed: Unused by the method's own rule; see `sparsejax.sparsify`.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.acdc_transform(
        ...     optax.sgd(0.1), final_sparsity=0.75, phases=[2, 4, 6])
        >>> params, state = sj.init_sparse(tx, {"w": jnp.arange(1.0, 9).reshape(2, 4)})
        >>> active = []
        >>> for _ in range(7):
        ...     updates, state = tx.update({"w": jnp.ones((2, 4))}, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     active.append(sj.count_active(sj.get_masks(state)).item())
        >>> active
        [8, 8, 2, 2, 8, 8, 2]
    """
    _check_phases(phases)
    if total_steps is not None:
        check_within("phases", int(phases[-1]), total_steps)
    s = NOMINAL if final_sparsity is None else final_sparsity
    check_sparsity("final_sparsity", s)
    starts = np.array([int(step) for step in phases], np.int32)
    compress = prune(magnitude, to=s, scope=scope)

    def update(ctx: Context) -> Any:
        return jax.lax.cond(
            jnp.sum(ctx.step >= starts) % 2 == 1,
            lambda: compress.apply(ctx),
            lambda: map_masked(jnp.ones_like, ctx.masks),  # what comes back is new: 0
        )

    method = Method(
        first=gradual_start(0.0, final_sparsity, "erk"),
        update=Element(update, settings=compress.settings),
        when=lambda t: jnp.isin(t, starts),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _check_phases(phases: Any) -> None:
    steps = [] if isinstance(phases, str) or not hasattr(phases, "__len__") else phases
    if len(steps) == 0:
        raise ValueError(
            "phases must be the first steps of the sparse and dense phases in turn, at "
            f"least one; got {phases!r}."
        )
    least = 1
    for step in steps:
        check_step("phases", step, least, "" if least == 1 else ", each after the last")
        least = step + 1
