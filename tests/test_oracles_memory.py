"""Runs of methods that remember or redistribute against plain NumPy, as test_oracles.

An oracle here is made anew for each run and is asked at every step, so that it can keep
what the paper says that the method keeps.
"""

import math

import numpy as np
import pytest
from test_oracles import (
    END,
    GRADUAL,
    INTERVAL,
    SHAPES,
    SPARSE,
    STEPS,
    ceil,
    compare_with_oracle,
    cosine,
    drop,
    drop_and_grow,
    granet,
    grow,
    part_of,
    periodic,
    prune_all_layers_together,
    prune_each_layer,
    random_scores,
    size_of,
)

import sparsejax as sj

PERIODIC = list(range(INTERVAL, STEPS, INTERVAL))
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}


def share(total, wants, rooms):
    """In proportion to what is wanted, full layers full, by largest remainder."""
    full = set()
    while True:
        rest = total - sum(rooms[name] for name in full)
        others = [name for name in rooms if name not in full]
        sum_of_wants = sum(wants[name] for name in others) or 1.0
        quota = {name: rest * wants[name] / sum_of_wants for name in others}
        over = {name for name in others if quota[name] >= rooms[name]}
        if not over:
            break
        full |= over
    counts = {name: rooms[name] for name in full}
    counts |= {name: math.floor(quota[name]) for name in others}
    missing = min(total, sum(rooms.values())) - sum(counts.values())
    by_remainder = sorted(
        others, key=lambda name: -round(quota[name] - counts[name], 3)
    )
    for name in by_remainder[:missing]:
        counts[name] += 1
    return {name: counts[name] for name in rooms}


def count(mask):
    return {name: int(mask[name].sum()) for name in SHAPES}


# What is remembered: both see the gradient of every weight at every step.


class Momentum:
    def __init__(self, alpha):
        self.alpha = np.float32(alpha)
        self.mean = {
            name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()
        }

    def __call__(self, step, g):
        for name in SHAPES:
            old, new = self.mean[name], np.asarray(g[name])
            self.mean[name] = self.alpha * old + (1 - self.alpha) * new
        return self.mean


class LastGradients:
    """The mean gradient of the last n steps, none of them before the last update."""

    def __init__(self, n, is_update):
        self.n, self.is_update, self.gradients = n, is_update, []

    def __call__(self, step, g):
        if self.is_update(step - 1):
            self.gradients = []
        self.gradients.append({name: np.array(g[name]) for name in SHAPES})
        last = self.gradients[-self.n :]
        return {name: np.mean([x[name] for x in last], axis=0) for name in SHAPES}


# The methods.


def itop(score):
    """RigL or SET to the end of the run, with a rate from 0.5 to 0.005."""

    def update(step, w, g, mask):
        if not periodic(step):
            return None
        scores = size_of(g) if score == "gradient" else random_scores(step)
        return [drop_and_grow(w, scores, mask, cosine(0.5, 0.005, STEPS, step))]

    return update


def rigl_by_mean(n):
    mean_gradient = LastGradients(n, periodic)

    def update(step, w, g, mask):
        mean = mean_gradient(step, g)
        if not periodic(step) or step > 3 * STEPS // 4:
            return None
        rate = cosine(0.3, 0.0, 3 * STEPS // 4, step)
        return [drop_and_grow(w, size_of(mean), mask, rate)]

    return update


def snfs(alpha):
    """Layers are pruned by magnitude and get back what their mean |momentum| says."""
    momentum = Momentum(alpha)

    def update(step, w, g, mask):
        size = size_of(momentum(step, g))
        if not periodic(step):
            return None
        rate = cosine(0.5, 0.005, STEPS, step)
        drops = part_of(mask, rate)
        importance = {
            name: float(size[name][mask[name]].mean()) if mask[name].any() else 0.0
            for name in SHAPES
        }
        kept = drop(size_of(w), mask, drops)
        rooms = {name: SIZES[name] - n for name, n in count(kept).items()}
        return [grow(size, kept, share(sum(drops.values()), importance, rooms))]

    return update


def dsr(fraction, threshold):
    """A common threshold; growth at random by what is left, not where just emptied."""
    state = {"H": threshold}

    def update(step, w, g, mask):
        if not periodic(step):
            return None
        drops = {}
        for name in SHAPES:
            below = int((np.abs(w[name])[mask[name]] < state["H"]).sum())
            drops[name] = min(below, max(int(mask[name].sum()) - 1, 0))
        total, wanted = sum(drops.values()), ceil(fraction * sum(count(mask).values()))
        kept = drop(size_of(w), mask, drops)
        rooms = {name: SIZES[name] - n for name, n in count(mask).items()}
        counts = share(total, count(kept), rooms)
        more = share(total - sum(counts.values()), count(kept), drops)
        counts = {name: counts[name] + more[name] for name in SHAPES}
        if total > 1.1 * wanted:
            state["H"] /= 2
        elif total < 0.9 * wanted:
            state["H"] *= 2
        # The library prefers other places by turning the scores of emptied ones.
        chance = random_scores(step)
        chance = {n: np.where(mask[n], -1 - chance[n], chance[n]) for n in SHAPES}
        return [kept, grow(chance, kept, counts)]

    return update


def mest(soft_bound, weight):
    """Mutation in stages; the soft bound lets grown weights stay for an interval."""
    budget = {}

    def update(step, w, g, mask):
        if not budget:
            budget.update(count(mask))
        if not periodic(step):
            return None
        epoch = 160 * step / STEPS
        rate = 0.2 if epoch < 90 else 0.1 if epoch < 120 else 0.0
        score = {name: np.abs(w[name]) + weight * np.abs(g[name]) for name in SHAPES}
        changes = {name: ceil(rate * n) for name, n in budget.items()}
        drops = changes
        if soft_bound:
            drops = {name: n - budget[name] for name, n in count(mask).items()}
        kept = drop(score, mask, drops)
        return [kept, grow(random_scores(step), kept, changes)]

    return update


# Name: the transform, its settings, the oracle, the updates that change masks.
EXERCISED = {
    "RigL-ITOP": (sj.itop_transform, SPARSE, lambda: itop("gradient"), PERIODIC),
    "SET-ITOP": (
        sj.itop_transform,
        SPARSE | {"grow": sj.scores.random},
        lambda: itop("random"),
        PERIODIC,
    ),
    "RigL, mean gradient": (
        sj.rigl_transform,
        SPARSE | {"grow": sj.scores.mean_gradient(3)},
        lambda: rigl_by_mean(3),
        [step for step in PERIODIC if step < 3 * STEPS // 4],
    ),
    # An update at 35 comes a step after one at 34: its window is one step.
    "GraNet, mean gradient": (
        sj.granet_transform,
        GRADUAL | {"grow": sj.scores.mean_gradient(4)},
        lambda: granet(
            prune_all_layers_together,
            0.0,
            LastGradients(4, lambda step: periodic(step) or step == END),
        ),
        sorted([*PERIODIC, END]),
    ),
    "GraNet, momentum": (
        sj.granet_transform,
        GRADUAL | {"grow": sj.scores.momentum(0.8), "initial_sparsity": 0.5},
        lambda: granet(prune_all_layers_together, 0.5, Momentum(0.8)),
        sorted([*PERIODIC, END]),
    ),
    "GraNet-uniform": (
        sj.granet_transform,
        GRADUAL
        | {"scope": "layer", "initial_sparsity": 0.4, "distribution": "uniform"},
        lambda: granet(prune_each_layer, 0.4),
        sorted([*PERIODIC, END]),
    ),
    "SNFS": (sj.snfs_transform, SPARSE, lambda: snfs(0.9), PERIODIC),
    # The layer of one weight is full, and its share goes to the others.
    "SNFS, nearly dense": (
        sj.snfs_transform,
        SPARSE | {"sparsity": 0.15, "momentum": 0.5, "distribution": "erk"},
        lambda: snfs(0.5),
        PERIODIC,
    ),
    "DSR": (
        sj.dsr_transform,
        SPARSE | {"initial_threshold": 0.01, "distribution": "erk"},
        lambda: dsr(0.1, 0.01),
        PERIODIC,
    ),
    # There are too few places that have not just been emptied.
    "DSR, nearly dense": (
        sj.dsr_transform,
        SPARSE | {"sparsity": 0.1, "initial_threshold": 0.5, "prune_rate": 0.3},
        lambda: dsr(0.3, 0.5),
        PERIODIC,
    ),
    "MEST, EM": (
        sj.mest_transform,
        SPARSE | {"gradient_weight": 0.2},
        lambda: mest(False, 0.2),
        [step for step in PERIODIC if step < 3 * STEPS // 4],
    ),
    # At 45, the last stage's first update, what is above the budget goes.
    "MEST, EM&S": (
        sj.mest_transform,
        SPARSE | {"soft_bound": True},
        lambda: mest(True, 0.0),
        [step for step in PERIODIC if step <= 3 * STEPS // 4],
    ),
}


@pytest.mark.parametrize("method", EXERCISED)
def test_a_run_takes_the_masks_and_weights_of_the_oracle(method, quick_compilation):
    transform, settings, oracle, expected = EXERCISED[method]
    changes = compare_with_oracle(transform, settings, oracle())
    assert changes == expected
