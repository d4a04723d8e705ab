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
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.input.digits import CLASSES, IMAGE_SHAPE, Split
from experiments.models.digits_cnn import LAYERS, DigitsCNN
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
    State,
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
    targets, seeds = (np.array(column) for column in zip(*cells))
    targets, seeds = targets.astype(np.float32), seeds.astype(np.int32)
    strengths = {POLARISED: config.polarisation, NO_PENALTY: 0.0}
    gated = train_gated(
        np.tile(seeds, len(GATED)),
        np.tile(targets, len(GATED)),
        np.repeat([np.float32(strengths[form]) for form in GATED], len(cells)),
        data.train,
        config,
    )
    with_gates = measure_gated(gated, data.test)
    static = measure_static(gated.params, gated.units, data.test)
    records = [
        make_record(
            (form, *cells[i % len(cells)]),
            _pick(gated.units, i),
            float(static[i]),
            gated_accuracy=float(with_gates.accuracy[i]),
            changed=float(with_gates.changed[i]),
            undecided=np.asarray(gated.undecided[i]).tolist(),
        )
        for i, form in enumerate(np.repeat(GATED, len(cells)).tolist())
    ]

    # The controls have the units of the first form, by number.
    wanted = jax.tree.map(lambda units: units[: len(cells)], gated.units)
    drawn = random_units(seeds, wanted)
    state = init_static(seeds, drawn, data.train, config)
    every_epoch = range(config.epochs)
    state = train_static(state, drawn, seeds, every_epoch, data.train, config)
    records += _records(RANDOM, cells, drawn, state, data)

    # One run with all units a seed, which goes on as it is and with fewer.
    middle = config.epochs // 2
    own = np.array(config.seeds, np.int32)
    full = {layer: jnp.ones((len(own), w), bool) for layer, w in _widths().items()}
    state = init_static(own, full, data.train, config)
    state = train_static(state, full, own, range(middle), data.train, config)
    of_cell = np.tile(np.arange(len(own)), len(config.targets))
    chosen = largest_units(_pick(state.params, of_cell), wanted)
    places = np.concatenate([of_cell, np.arange(len(own))])
    units = jax.tree.map(lambda *parts: jnp.concatenate(parts), chosen, full)
    state = train_static(
        _pick(state, places),
        units,
        own[places],
        range(middle, config.epochs),
        data.train,
        config,
    )
    all_cells = [*cells, *((1.0, seed) for seed in config.seeds)]
    last = _records(MAGNITUDE, all_cells, units, state, data)
    records += [
        record if record.target < 1 else record._replace(form=DENSE) for record in last
    ]
    return records, time.perf_counter() - started


def _widths() -> dict[str, int]:
    return dict(zip(LAYERS, DigitsCNN(CLASSES).widths))


def _pick(tree: PyTree, places: int | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[places], tree)


def _records(
    form: str,
    cells: Sequence[tuple[float, int]],
    units: Units,
    state: State,
    data: Split,
) -> list[Record]:
    accuracies = measure_static(state.params, units, data.test)
    return [
        make_record((form, *cell), _pick(units, i), float(accuracies[i]))
        for i, cell in enumerate(cells)
    ]


def make_record(
    place: tuple[str, float, int], units: Units, accuracy: float, **gated: Any
) -> Record:
    """Sets down what came of one network, with the size of the static one.

    Args:
        place: Form, target and seed.
        units: bool[units] by layer.
        accuracy: Test accuracy of the static network, in [0, 1].
        **gated: The fields that only networks with gates have.

    Returns:
        The record.
    """
    widths = [int(np.sum(units[layer])) for layer in LAYERS]
    parameters = flops = None
    if all(widths):
        model = DigitsCNN(CLASSES, tuple(widths))
        image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        flops = sj.forward_flops(model.apply, shapes, image).total
    return Record(*place, widths, parameters, flops, accuracy, **gated)
