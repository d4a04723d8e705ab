"""The study: networks with gates, the static ones they leave, and controls.

For each target and seed, with E epochs for every network:

    polarised     gates by the input, both penalties; the vote's units stay
    no_penalty    the same without the penalty of polarisation
    random        as many units a layer as the first has, drawn at random, from scratch
    magnitude     all units for the first half of the epochs, then as many as the first
                  has, those with the largest norm of incoming weights

and for each seed one network with all units.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.input.digits import CLASSES, IMAGE_SHAPE, Split
from experiments.models.digits_cnn import LAYERS, DigitsCNN
from experiments.models.gated_digits_cnn import without_gates
from experiments.polarisation_study.results import Record
from experiments.polarisation_study.settings import (
    DENSE,
    GATED,
    MAGNITUDE,
    NO_PENALTY,
    POLARISED,
    RANDOM,
)
from experiments.polarisation_study.train import (
    Gated,
    Units,
    init_static,
    largest_units,
    measure_gated,
    measure_static,
    random_units,
    train_gated,
    train_static,
)

PyTree = Any
Cell = tuple[float, int]  # target, seed


def run_study(config: ConfigDict, data: Split) -> tuple[list[Record], float]:
    """Trains and tests all networks.

    Args:
        config: As in `experiments/configs/polarisation_digits.py`, checked.
        data: The data.

    Returns:
        The records, and the wall time in seconds, compiling included.
    """
    started = time.perf_counter()
    cells = [(target, seed) for target in config.targets for seed in config.seeds]
    gated, records = _train_gated(cells, data, config)
    wanted = {layer: on[: len(cells)] for layer, on in gated.units.items()}
    records += _train_controls(cells, jax.device_get(wanted), data, config)
    return records, time.perf_counter() - started


def _train_gated(
    cells: Sequence[Cell], data: Split, config: ConfigDict
) -> tuple[Gated, list[Record]]:
    """Trains both forms with gates, the polarised one first."""
    strengths = {POLARISED: config.polarisation, NO_PENALTY: 0.0}
    places = [(form, *cell) for form in GATED for cell in cells]
    forms, targets, seeds = zip(*places)
    gated = train_gated(
        np.array(seeds, np.int32),
        np.array(targets, np.float32),
        np.array([strengths[form] for form in forms], np.float32),
        data.train,
        config,
    )
    measured = measure_gated(gated, data.test)
    static = measure_static(without_gates(gated.params), gated.units, data.test)
    records = [
        _record(
            place,
            _pick(gated.units, i),
            float(static[i]),
            gated_accuracy=float(measured.accuracy[i]),
            changed=float(measured.changed[i]),
            undecided=np.asarray(gated.undecided[i]).tolist(),
        )
        for i, place in enumerate(places)
    ]
    return gated, records


def _train_controls(
    cells: Sequence[Cell], wanted: Units, data: Split, config: ConfigDict
) -> list[Record]:
    """Trains networks of given units, as many a layer as `wanted` has in each cell.

    Random units and all units go through the first half of the epochs together. Then
    networks with all units are copied, each copy with its largest units alone, and all
    go through the second.
    """
    own = np.array(config.seeds, np.int32)
    seeds = np.array([seed for _, seed in cells], np.int32)
    drawn = random_units(seeds, wanted)
    full = {layer: np.ones_like(on[: len(own)]) for layer, on in drawn.items()}
    units, seeds = _concatenate(drawn, full), np.concatenate([seeds, own])
    middle = config.epochs // 2
    first, second = range(middle), range(middle, config.epochs)
    state = init_static(seeds, units, data.train, config)
    state = train_static(state, units, seeds, first, data.train, config)

    copied = len(cells) + np.tile(np.arange(len(own)), len(config.targets))
    largest = largest_units(_pick(state.params, copied), wanted)
    everything = np.concatenate([np.arange(len(seeds)), copied])
    state, units = _pick(state, everything), _concatenate(units, largest)
    state = train_static(state, units, seeds[everything], second, data.train, config)
    accuracies = measure_static(state.params, units, data.test)
    places = [
        *((RANDOM, *cell) for cell in cells),
        *((DENSE, 1.0, seed) for seed in config.seeds),
        *((MAGNITUDE, *cell) for cell in cells),
    ]
    return [
        _record(place, _pick(units, i), float(accuracies[i]))
        for i, place in enumerate(places)
    ]


def _concatenate(*units: Units) -> Units:
    return jax.tree.map(lambda *parts: np.concatenate(parts), *units)


def _pick(tree: PyTree, places: int | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[places], tree)


def _record(
    place: tuple[str, float, int], units: Units, accuracy: float, **gated: Any
) -> Record:
    """What came of one network, with the size of the static one."""
    widths = [int(np.sum(units[layer])) for layer in LAYERS]
    parameters = flops = None
    if all(widths):
        model = DigitsCNN(CLASSES, tuple(widths))
        image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        flops = sj.forward_flops(model.apply, shapes, image).total
    return Record(*place, widths, parameters, flops, accuracy, **gated)
