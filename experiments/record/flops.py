"""FLOPs of a run, from the densities it had and its method's rule."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

import sparsejax as sj

Densities = Mapping[str, float | Fraction]

# Methods by the rule of `sparsejax.training_flops` that they follow, where it has
# another name.
_RULES = {
    "rigl_itop": "itop",
    "gmp_layer": "gmp",
    "granet_uniform": "granet",
    "granet_st": "granet",
}


class RunFlops(NamedTuple):
    """FLOPs of a run on hardware that skips every zero; a multiply-add is two.

    Attributes:
        dense_forward: FLOPs of the dense forward pass of one example.
        inference: FLOPs of the trained network's, as a fraction of that.
        training: FLOPs of the whole run, as a fraction of dense training's.
    """

    dense_forward: int
    inference: float
    training: float


def run_flops(
    method: str,
    forward: sj.ForwardFlops,
    history: Sequence[tuple[int, Densities]],
    total_steps: int,
    update_steps: Iterable[int],
    backward: Densities | None = None,
) -> RunFlops:
    """Adds up the FLOPs of a run.

    Args:
        method: A key of `experiments.training.sparse.LABELS`.
        forward: The dense forward pass of one example.
        history: (step, densities by path) pairs, as in `sparsejax.training_flops`; the
            last one's are those of inference.
        total_steps: Steps of the run.
        update_steps: The steps at which the topology was updated.
        backward: For Top-KAST, the densities of B, what is trained.

    Returns:
        The FLOPs.

    Raises:
        ValueError: If the method has no rule, or `history` does not fit.

    Example:
        >>> forward = sj.ForwardFlops({"w": 1000}, other=0)
        >>> run_flops("rigl", forward, [(0, {"w": 0.5})], 10, [5])
        RunFlops(dense_forward=1000, inference=0.5, training=0.5166666666666667)
    """
    rule: Any = _RULES.get(method, method)
    if method == "top_kast":
        rule = sj.top_kast_accounting(sj.inference_flops(forward, backward or {}))
    updates = np.array(sorted(update_steps), np.int64)
    run = sj.training_flops(
        forward, history, total_steps, rule, lambda steps: np.isin(steps, updates)
    )
    inference = sj.inference_flops(forward, history[-1][1]) / forward.total
    return RunFlops(forward.total, float(inference), float(run.relative))


def changes(
    steps: Iterable[int], densities: Iterable[Densities]
) -> list[tuple[int, Densities]]:
    """Shortens a history to the steps at which densities change.

    Args:
        steps: Steps, rising.
        densities: The densities from each of these steps on.

    Returns:
        The pairs that differ from the one before.
    """
    kept: list[tuple[int, Densities]] = []
    for step, now in zip(steps, densities):
        if not kept or kept[-1][1] != now:
            kept.append((step, now))
    return kept
