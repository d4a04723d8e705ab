"""The tables of the family-wide tests: a method or an optimizer is one row.

A cell, a method with an optimizer, trains a small tree of parameters for `STEPS` steps
by gradients that pull weights to a target, plus noise drawn beforehand. What a method
must keep at each step is computed here from the papers' formulas, in NumPy and apart
from the library.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import sparsejax as sj

PyTree = Any

SHAPES = {
    "conv": {"kernel": (3, 3, 4, 8), "bias": (8,)},
    "dense": {"kernel": (8, 10), "bias": (10,)},
    "scale": {"kernel": (1, 1)},
}
LAYERS = {"conv/kernel": 288, "dense/kernel": 80, "scale/kernel": 1}
TOTAL = sum(LAYERS.values())

STEPS, BEGIN, INTERVAL, END = 24, 2, 4, 12  # the end is between two updates
PERIODIC = range(BEGIN + INTERVAL, STEPS, INTERVAL)  # 6, 10, 14, 18, 22
TO_THE_END = sorted({*PERIODIC, END})
SPARSITY = 0.8
RIGL_STOP = STEPS * 3 // 4
PHASES = [4, 9, 12, 18, 20]  # sparse, dense, sparse, dense, sparse


def make_params(seed: int = 0) -> PyTree:
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.normal(0, 0.5, shape).astype(np.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


TARGET = make_params(1)
NOISE = [make_params(seed) for seed in range(100, 108)]


def noise_of(call: int) -> PyTree:
    return NOISE[call % len(NOISE)]


def gradients(params: PyTree, noise: PyTree) -> PyTree:
    """The gradient of 0.1 |params - TARGET|^2 / 2, and noise."""
    return jax.tree.map(
        lambda p, target, n: 0.1 * (p - target) + n, params, TARGET, noise
    )


def cubic(start: float, step: int) -> float:
    progress = min(max((step - BEGIN) / (END - BEGIN), 0.0), 1.0)
    return SPARSITY + (start - SPARSITY) * (1 - progress) ** 3


def cosine(first: float, last: float, length: int, step: int) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(step / length, 1))) / 2


def keep(sparsity: float, size: int) -> int:
    return int(np.rint((1 - sparsity) * size))


class MethodCase(NamedTuple):
    """A method and what the papers say that it does.

    Attributes:
        wrap: Wraps an optimizer.
        update_steps: The steps at which masks may change.
        kept: The active weights at an update step, of all layers; at any other step
            they are those of the last update step. Step -1 is the start.
        prune_rate: The fraction of each layer that may be dropped and grown at an
            update step, or None.
        kept_by_layer: The same as `kept` by layer, where the method fixes it.
        keeps_layer_counts: Whether a layer's count never changes.
        restarts: Whether at an update step a weight can go and come back from 0. Where
            it can't, one that is dropped and grown in the same update was never away.
        restores: Whether all weights come back at an update step.
        grown_by_layer: The weights that each layer grows at an update step, where they
            are not the prune rate's part of its active ones.
        redistributes: Whether layers grow other numbers than they dropped; of the prune
            rate's part of all layers, where there is a prune rate.
    """

    wrap: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    update_steps: list[int]
    kept: Callable[[int], int]
    prune_rate: Callable[[int], float] | None = None
    kept_by_layer: Callable[[int], dict[str, int]] | None = None
    keeps_layer_counts: bool = False
    restarts: Callable[[int], bool] = lambda step: False
    restores: Callable[[int], bool] = lambda step: False
    grown_by_layer: Callable[[int], dict[str, int]] | None = None
    redistributes: bool = False


def always(step: int) -> bool:
    return True


def while_pruning(step: int) -> bool:
    return step <= END


def constant(step: int) -> int:
    return keep(SPARSITY, TOTAL)


def gradual(start: float) -> Callable[[int], int]:
    return lambda step: keep(start if step < 0 else cubic(start, step), TOTAL)


def gradual_by_layer(step: int) -> dict[str, int]:
    sparsity = 0.0 if step < 0 else cubic(0.0, step)
    return {path: keep(sparsity, size) for path, size in LAYERS.items()}


def is_dense_phase(step: int) -> bool:
    return sum(step >= start for start in PHASES) % 2 == 0


def to_the_end(step: int) -> float:
    return cosine(0.5, 0.005, STEPS, step)


def granet_rate(step: int) -> float:
    """Where pruning ends between two of the periodic updates, it prunes alone."""
    return to_the_end(step) if step in PERIODIC else 0.0


def rigl_rate(step: int) -> float:
    return cosine(0.4, 0.0, RIGL_STOP, step)


def mest_rate(step: int) -> float:
    return 0.2 if step < STEPS * 9 / 16 else 0.1 if step < STEPS * 3 / 4 else 0.0


# A fifth of each layer is 57.6, 16 and 0.2 weights.
MEST_BUDGET = {"conv/kernel": 58, "dense/kernel": 16, "scale/kernel": 0}


def mest_growth(step: int) -> dict[str, int]:
    return {
        path: min(math.ceil(mest_rate(step) * n - 1e-9), LAYERS[path] - n)
        for path, n in MEST_BUDGET.items()
    }


def mest_above_budget(step: int) -> dict[str, int]:
    if step < 0:
        return MEST_BUDGET
    return {path: n + mest_growth(step)[path] for path, n in MEST_BUDGET.items()}


# A layer of one weight, which is no kernel unless one says so, can be full or empty.
PRUNABLE = [("kernel", True)]
GRADUAL = {
    "final_sparsity": SPARSITY,
    "end_step": END,
    "begin_step": BEGIN,
    "update_interval": INTERVAL,
    "prunable": PRUNABLE,
}
EXCHANGE = {
    "sparsity": SPARSITY,
    "total_steps": STEPS,
    "begin_step": BEGIN,
    "update_interval": INTERVAL,
    "prunable": PRUNABLE,
}


def granet(**settings: Any) -> Callable[[Any], Any]:
    settings = GRADUAL | {"total_steps": STEPS} | settings
    return lambda tx: sj.granet_transform(tx, **settings)


# Under Erdos-Renyi-Kernel 74 of 369 weights are 1 : 73 / 2 : 73 / 2, the sums of the
# two other shapes being the same; a neuron of 8 has 4 of 37, one of 10 has 3 of 36.
SRIGL_COUNTS = {"conv/kernel": 32, "dense/kernel": 30, "scale/kernel": 1}

METHODS = {
    "static": MethodCase(
        lambda tx: sj.static_transform(tx, sparsity=SPARSITY, prunable=PRUNABLE),
        update_steps=[],
        kept=constant,
        keeps_layer_counts=True,
    ),
    "set": MethodCase(
        lambda tx: sj.set_transform(tx, prune_rate=0.3, **EXCHANGE),
        update_steps=list(PERIODIC),
        kept=constant,
        prune_rate=lambda step: 0.3,
        keeps_layer_counts=True,
        restarts=always,
    ),
    "rigl": MethodCase(
        lambda tx: sj.rigl_transform(tx, prune_rate=0.4, **EXCHANGE),
        update_steps=[step for step in PERIODIC if step <= RIGL_STOP],
        kept=constant,
        prune_rate=rigl_rate,
        keeps_layer_counts=True,
    ),
    "itop": MethodCase(
        lambda tx: sj.itop_transform(tx, grow=sj.scores.mean_gradient(3), **EXCHANGE),
        update_steps=list(PERIODIC),
        kept=constant,
        prune_rate=to_the_end,
        keeps_layer_counts=True,
    ),
    # Without ablation, which is in test_srigl: with it, counts depend on the weights.
    "srigl": MethodCase(
        lambda tx: sj.srigl_transform(
            tx, prune_rate=0.4, ablation_threshold=0.0, **EXCHANGE
        ),
        update_steps=[step for step in PERIODIC if step <= RIGL_STOP],
        kept=lambda step: sum(SRIGL_COUNTS.values()),
        kept_by_layer=lambda step: SRIGL_COUNTS,
        keeps_layer_counts=True,
    ),
    "snfs": MethodCase(
        lambda tx: sj.snfs_transform(tx, distribution="erk", **EXCHANGE),
        update_steps=list(PERIODIC),
        kept=constant,
        prune_rate=to_the_end,
        redistributes=True,
    ),
    "dsr": MethodCase(
        lambda tx: sj.dsr_transform(
            tx, initial_threshold=0.1, distribution="erk", **EXCHANGE
        ),
        update_steps=list(PERIODIC),
        kept=constant,
        restarts=always,
        redistributes=True,
    ),
    # With this seed some of the few that are dropped are grown again.
    "mest": MethodCase(
        lambda tx: sj.mest_transform(
            tx, soft_bound=True, gradient_weight=0.1, seed=1, **EXCHANGE
        ),
        update_steps=list(PERIODIC),
        kept=lambda step: sum(mest_above_budget(step).values()),
        prune_rate=mest_rate,
        kept_by_layer=mest_above_budget,
        restarts=always,
        grown_by_layer=mest_growth,
    ),
    "mest_em": MethodCase(
        lambda tx: sj.mest_transform(tx, gradient_weight=0.1, **EXCHANGE),
        update_steps=list(PERIODIC),
        kept=constant,
        prune_rate=mest_rate,
        kept_by_layer=lambda step: MEST_BUDGET,
        keeps_layer_counts=True,
        restarts=always,
    ),
    # After the end only what was left out there is pruned: in these runs nothing.
    "gmp_global": MethodCase(
        lambda tx: sj.gmp_transform(tx, **GRADUAL),
        update_steps=TO_THE_END,
        kept=gradual(0.0),
    ),
    "gmp_layer": MethodCase(
        lambda tx: sj.gmp_transform(tx, scope="layer", **GRADUAL),
        update_steps=TO_THE_END,
        kept=lambda step: sum(gradual_by_layer(step).values()),
        kept_by_layer=gradual_by_layer,
    ),
    "granet_dense": MethodCase(
        granet(),
        update_steps=TO_THE_END,
        kept=gradual(0.0),
        prune_rate=granet_rate,
        restarts=while_pruning,
    ),
    "granet_sparse": MethodCase(
        granet(initial_sparsity=0.5),
        update_steps=TO_THE_END,
        kept=gradual(0.5),
        prune_rate=granet_rate,
        restarts=while_pruning,
    ),
    "granet_momentum": MethodCase(
        granet(scope="layer", grow=sj.scores.momentum(0.9)),
        update_steps=TO_THE_END,
        kept=lambda step: sum(gradual_by_layer(step).values()),
        kept_by_layer=gradual_by_layer,
        prune_rate=granet_rate,
        restarts=while_pruning,
    ),
    "granet_mean_gradient": MethodCase(
        granet(grow=sj.scores.mean_gradient(3)),
        update_steps=TO_THE_END,
        kept=gradual(0.0),
        prune_rate=granet_rate,
        restarts=while_pruning,
    ),
    "acdc": MethodCase(
        lambda tx: sj.acdc_transform(
            tx, final_sparsity=SPARSITY, phases=PHASES, prunable=PRUNABLE
        ),
        update_steps=PHASES,
        kept=lambda step: keep(0.0 if is_dense_phase(step) else SPARSITY, TOTAL),
        restores=is_dense_phase,
    ),
}


class OptimizerCase(NamedTuple):
    """An optax optimizer to wrap, and what goes around the wrapped one.

    Attributes:
        inner: Makes the optimizer that a method wraps.
        momenta: The fields of its state that must be 0 for a newly grown weight.
        second_moments: The fields that start from the mean over the kept weights.
        decay: What is left of a second moment after a step t without a gradient.
        outer: Wraps the result.
        micro_steps: Calls of `update` for each step that reaches the method.
    """

    inner: Callable[[], optax.GradientTransformation]
    momenta: tuple[str, ...] = ()
    second_moments: tuple[str, ...] = ()
    decay: Callable[[int], float] = lambda t: 0.999
    outer: Callable[[Any], Any] = lambda tx: tx
    micro_steps: int = 1


def accumulate(tx: Any) -> optax.GradientTransformation:
    return optax.MultiSteps(tx, 2).gradient_transformation()


def kernels_or_biases(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "bias", params)


LR = 0.05

OPTIMIZERS = {
    "momentum": OptimizerCase(
        lambda: optax.sgd(LR, momentum=0.9, nesterov=True), ("trace",)
    ),
    "adam": OptimizerCase(lambda: optax.adam(LR), ("mu",), ("nu",)),
    "adamw": OptimizerCase(lambda: optax.adamw(LR, weight_decay=0.1), ("mu",), ("nu",)),
    "adamw_scheduled_decay": OptimizerCase(
        lambda: optax.adamw(
            optax.cosine_decay_schedule(LR, 2 * STEPS),
            weight_decay=optax.linear_schedule(0.1, 0.01, STEPS),
        ),
        ("mu",),
        ("nu",),
    ),
    "rmsprop": OptimizerCase(
        lambda: optax.rmsprop(LR, momentum=0.9), ("trace",), ("nu",), lambda t: 0.9
    ),
    # With a constant rate, two of Lion's steps take a grown weight back to exactly 0.
    "lion": OptimizerCase(
        lambda: optax.lion(optax.cosine_decay_schedule(LR, 2 * STEPS)), ("mu",)
    ),
    "lamb": OptimizerCase(lambda: optax.lamb(LR, weight_decay=0.1), ("mu",), ("nu",)),
    # A limit at which the dense kernel is factored and the convolution is not.
    "adafactor": OptimizerCase(
        lambda: optax.adafactor(LR, min_dim_size_to_factor=8, momentum=0.9),
        ("ema",),
        ("v",),
        lambda t: 1 - (t + 1) ** -0.8,
    ),
    "muon": OptimizerCase(lambda: optax.contrib.muon(LR), ("mu",)),
    "schedule_free": OptimizerCase(
        lambda: optax.contrib.schedule_free(optax.sgd(LR), LR), ("z",)
    ),
    "inject_hyperparams": OptimizerCase(
        lambda: optax.inject_hyperparams(optax.adam)(
            learning_rate=optax.linear_schedule(LR, LR / 2, STEPS)
        ),
        ("mu",),
        ("nu",),
    ),
    # Updates are at even steps, the first of two, at which Adam takes none.
    "multi_steps_inside": OptimizerCase(
        lambda: accumulate(optax.adam(LR)),
        ("mu", "acc_grads"),
        ("nu",),
        lambda t: 1.0 if t % 2 == 0 else 0.999,
    ),
    "multi_steps_outside": OptimizerCase(
        lambda: optax.adam(LR), ("mu",), ("nu",), outer=accumulate, micro_steps=2
    ),
    "partition": OptimizerCase(
        lambda: optax.partition(
            {"kernel": optax.sgd(LR, momentum=0.9), "bias": optax.adam(LR)},
            kernels_or_biases,
        ),
        ("trace",),
    ),
    "clip_and_ema": OptimizerCase(
        lambda: optax.chain(
            optax.clip_by_global_norm(1.0), optax.ema(0.9), optax.scale(-LR)
        ),
        ("ema",),
    ),
    "apply_if_finite": OptimizerCase(
        lambda: optax.apply_if_finite(optax.adam(LR), 3),
        ("mu",),
        ("nu",),
        outer=lambda tx: optax.apply_if_finite(tx, 3),
    ),
}


# Whether a method keeps what it must does not depend on the optimizer, nor the other
# way round: a row and a column of the table, and the pair that GraNet's paper trains.
CELLS = [
    *((method, "adam") for method in METHODS),
    *(("rigl", optimizer) for optimizer in OPTIMIZERS if optimizer != "adam"),
    ("granet_dense", "momentum"),
]


def make_cell(method: str, optimizer: str) -> optax.GradientTransformation:
    case = OPTIMIZERS[optimizer]
    return case.outer(METHODS[method].wrap(case.inner()))


def sparsify_state(opt_state: PyTree) -> sj.SparsifyState:
    """The one state of `sparsify` in an optimizer state."""
    is_ours = lambda node: isinstance(node, sj.SparsifyState)
    [found] = filter(is_ours, jax.tree.leaves(opt_state, is_leaf=is_ours))
    return found


def by_path(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays by path."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda p: jax.tree_util.keystr(p, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in pairs}
