"""FLOPs of training, by the rule of each method.

A training step is a forward pass of f FLOPs, the gradients of the activations, f again,
and the gradients of the weights, f again. With f_S for the active weights S, f_D for
all weights and f_G for the weights G whose gradients are taken, a step costs

    2 f_S + f_G.

    dense                            S and G all weights              3 f_D
    static, SET, DSR, MEST, GMP      G = S                            3 f_S
    RigL, ITOP, SRigL, GraNet        G all at update steps, else S    2 f_S + f_D, 3 f_S
      growth by mean_gradient(n)     G all at the n steps up to one, else S
      growth by momentum             G all, at every step             2 f_S + f_D
      growth at random               G = S                            3 f_S
    SNFS                             G all, at every step             2 f_S + f_D
    Top-KAST                         G = B, larger than S             2 f_S + f_B
    AC/DC                            G = S, all in dense phases       3 f_S

This is the accounting of RigL (Evci et al., arXiv 1911.11134): the first layer's input
gradient, which nobody needs, counts; optimizers, norms and the search for masks do not.
RigL's paper averages over an interval (`rigl_step_flops`); `training_flops` counts the
update steps of a run, none of which come after updates stop. Top-KAST's row follows
from its rule (Jayakumar et al., arXiv 2106.03517), not from figures of its authors.

Masks simulate sparsity: these are the FLOPs that hardware would need that skips every
zero. A step here costs as much as a dense one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sparsejax.analysis.flops import ForwardFlops, inference_flops, plain
from sparsejax.chain import ScoreLike, as_score
from sparsejax.checks import check_choice, check_step
from sparsejax.distributions import Distribution, Shape, layer_counts
from sparsejax.schedules import Schedule
from sparsejax.scores import gradient

Densities = Mapping[str, float | Fraction]
# (f_S, f_D, whether it is an update step) -> FLOPs of one training step
Accounting = Callable[[float, float, bool], float]


def _dense(sparse: float, dense: float, is_update: bool) -> float:
    return 3 * dense


def _sparse(sparse: float, dense: float, is_update: bool) -> float:
    return 3 * sparse


def _dense_gradient_at_updates(sparse: float, dense: float, is_update: bool) -> float:
    return 2 * sparse + (dense if is_update else sparse)


def _dense_gradient(sparse: float, dense: float, is_update: bool) -> float:
    return 2 * sparse + dense


ACCOUNTINGS: dict[str, Accounting] = {
    "acdc": _sparse,
    "dense": _dense,
    "dsr": _sparse,
    "gmp": _sparse,
    "granet": _dense_gradient_at_updates,
    "itop": _dense_gradient_at_updates,
    "mest": _sparse,
    "rigl": _dense_gradient_at_updates,
    "set": _sparse,
    "snfs": _dense_gradient,
    "srigl": _dense_gradient_at_updates,
    "static": _sparse,
}
# Those with a choice of what grows.
_GROW = ("rigl", "itop", "granet")


def top_kast_accounting(backward: float) -> Accounting:
    """Makes Top-KAST's accounting: weight gradients of a larger set B.

    Args:
        backward: f_B, the FLOPs of a forward pass at the density of B.

    Returns:
        A function for the `method` argument of `training_flops`.

    Example:
        >>> top_kast_accounting(30)(20, 100, False)
        70
    """
    return lambda sparse, dense, is_update: 2 * sparse + backward


def rigl_step_flops(sparse: float, dense: float, update_interval: int) -> float:
    """Averages RigL's steps over an update interval, by the formula of its paper.

    (3 f_S dT + 2 f_S + f_D) / (dT + 1), dT ordinary steps and one update step.

    Args:
        sparse: f_S, the sparse forward pass.
        dense: f_D, the dense one.
        update_interval: dT, at least 1.

    Returns:
        FLOPs of an average step.

    Raises:
        ValueError: If the interval is not an integer of at least 1.

    Example:
        >>> rigl_step_flops(20, 100, 3)
        80.0
    """
    check_step("update_interval", update_interval, 1)
    return (3 * sparse * update_interval + 2 * sparse + dense) / (update_interval + 1)


class TrainingFlops(NamedTuple):
    """FLOPs of a training run; a multiply-add is two.

    Attributes:
        flops: FLOPs of the run on hardware that skips every zero.
        dense: FLOPs of dense training for as many steps.
    """

    flops: float
    dense: float

    @property
    def relative(self) -> float:
        """The run's FLOPs over those of dense training."""
        return self.flops / self.dense


def training_flops(
    flops: ForwardFlops,
    history: Sequence[tuple[int, Densities]],
    total_steps: int,
    method: str | Accounting = "static",
    is_update_step: Schedule | None = None,
    batch_size: int = 1,
    grow: ScoreLike = gradient,
) -> TrainingFlops:
    """Adds up the FLOPs of a run, each step by its densities and its method's rule.

    Args:
        flops: The dense forward pass, of `forward_flops`.
        history: (step, densities) pairs in the order of the steps: the densities by
            path from that step on, as `layer_densities(masks)` gives them. The first
            step is 0. New masks first run at the step after the update step that made
            them. `{}` is dense, as in AC/DC's dense phases.
        total_steps: Steps of the run; what `history` says of later ones is not used.
        method: "dense", "static", "set", "dsr", "mest", "gmp", "acdc", "rigl", "itop",
            "srigl", "granet", "snfs", or a function (f_S, f_D, is_update) -> FLOPs of a
            step, such as `top_kast_accounting` makes.
        is_update_step: A function of an array of steps, such as `sparsejax.every`
            makes; needed for "rigl", "itop", "srigl" and "granet", unless `grow` reads
            no gradients or those of all steps.
        batch_size: Examples a step, where `flops` are those of one.
        grow: What "rigl", "itop" or "granet" was told to grow by, of
            `sparsejax.scores`; it says which steps take dense gradients.

    Returns:
        The FLOPs of the run and of dense training, exact where densities are.

    Raises:
        ValueError: If an argument is out of range, `history` does not start at 0 or is
            out of order, or the method is unknown, lacks its update steps, or has
            growth of its own.

    Example:
        >>> import sparsejax as sj
        >>> flops = sj.ForwardFlops({"w": 1000}, other=0)
        >>> run = training_flops(flops, [(0, {"w": Fraction(1, 5)})], total_steps=400,
        ...                      method="rigl", is_update_step=sj.every(100))
        >>> run.flops, run.dense, run.relative
        (242400, 1200000, 0.202)
    """
    check_step("total_steps", total_steps, 1)
    check_step("batch_size", batch_size, 1)
    accounting = _accounting(method, grow, is_update_step)
    window = as_score("grow", grow).dense_gradients or 1
    starts = [step for step, _ in history]
    for step in starts:
        check_step("the steps of history", step, 0)
    if starts[:1] != [0] or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(
            "history must hold (step, densities) pairs in the order of the steps, the "
            f"first at step 0; got the steps {starts}."
        )
    spent = Fraction(0)
    for (start, densities), stop in zip(history, [*starts[1:], total_steps]):
        steps = np.arange(start, min(stop, total_steps))
        updates = 0
        if is_update_step is not None:
            ahead = [is_update_step(steps + n) for n in range(window)]
            updates = int(np.count_nonzero(np.any(ahead, axis=0)))
        sparse = inference_flops(flops, densities)
        for is_update, count in ((True, updates), (False, len(steps) - updates)):
            spent += count * Fraction(accounting(sparse, flops.total, is_update))
    dense = 3 * flops.total * total_steps * batch_size
    return TrainingFlops(plain(spent * batch_size), dense)


def _accounting(
    method: str | Accounting, grow: ScoreLike, is_update_step: Schedule | None
) -> Accounting:
    """Returns the rule of a method that grows by a score."""
    if not callable(method):
        check_choice("method", method, ACCOUNTINGS)
    accounting = method if callable(method) else ACCOUNTINGS[method]
    dense_gradients = as_score("grow", grow).dense_gradients
    if grow is not gradient and method not in _GROW:
        raise ValueError(
            f"grow must be left out with method={method!r}, which has growth of its "
            f"own; it is for {', '.join(map(repr, _GROW))}."
        )
    if accounting is not _dense_gradient_at_updates:
        return accounting
    if dense_gradients == 0:
        return _sparse
    if dense_gradients is None:
        return _dense_gradient
    if is_update_step is None:
        raise ValueError(
            f"is_update_step must be given with method={method!r}, whose update "
            "steps take dense gradients; got None."
        )
    return accounting


def density_history(
    shapes: Mapping[str, Shape],
    sparsity: Schedule,
    update_steps: Iterable[int],
    distribution: Distribution = "uniform",
) -> list[tuple[int, dict[str, Any]]]:
    """Lays a sparsity schedule out over layers, for runs whose masks are not at hand.

    Layers pruned by magnitude, all ranked together, differ in density; their masks say
    how, no formula does.

    Args:
        shapes: The shape of each prunable layer by its path.
        sparsity: The overall sparsity, a function of the step.
        update_steps: The steps at which masks change, rising; the new ones first run
            one step later.
        distribution: The sparsity's distribution; see `sparsejax.layer_counts`.

    Returns:
        (step, densities by path) pairs for `training_flops`, the first at step 0.

    Raises:
        ValueError: If the distribution cannot reach a sparsity.

    Example:
        >>> import sparsejax as sj
        >>> cubic = sj.cubic_sparsity(0.0, 0.5, begin_step=0, end_step=20)
        >>> density_history({"w": (4, 4)}, cubic, [10])
        [(0, {'w': Fraction(1, 1)}), (11, {'w': Fraction(9, 16)})]
    """
    sizes = {path: max(int(np.prod(shape)), 1) for path, shape in shapes.items()}

    def densities(step: int) -> dict[str, Fraction]:
        counts = layer_counts(shapes, float(sparsity(step)), distribution)
        return {path: Fraction(n, sizes[path]) for path, n in counts.items()}

    later = [(step + 1, densities(step)) for step in update_steps]
    return [(0, densities(0)), *later]
