"""The study: dense runs, then round by round each form of the ticket and the controls.

With w_k the weights of the dense run after epoch k, E its last epoch, and w the weights
that the form had at the end of the round before, a round prunes |w| globally and trains

    rewinding to k             w_k under the new masks, from epoch k to E,
    learning-rate rewinding    w itself, from epoch 0 to E,
    fine-tuning                w itself, on from E at the last learning rate.

Rewinding takes momentum back with the weights. Without rounds:

    pruned once                w_E, pruned to the sparsity at once, and fine-tuned,
    new weights                those of another seed, under the masks of rewinding to 0,
    shuffled masks             w_0, those masks shuffled within each layer.

An epoch has the same order of examples in all forms.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.lottery_study.settings import (
    CONTROLS,
    DENSE,
    NEW_WEIGHTS,
    ONE_SHOT,
    ORIGINAL,
    RANDOM_WEIGHTS,
    SINGLE,
    Unit,
    epochs_of,
    plan_units,
    rewind_epoch,
)
from experiments.lottery_study.store import Record, Store
from experiments.plasticity_study.problem import Problem, load_problem
from experiments.plasticity_study.prune import with_topology
from experiments.plasticity_study.replicas import (
    Programs,
    count_weights,
    make_programs,
)
from experiments.record.progress import Progress
from experiments.training.state import TrainState

PyTree = Any

# Sets the keys of shuffled masks apart from others that a run derives from its seed.
_STREAM = 0x5A0F


class _Bench(NamedTuple):
    """What all units need."""

    config: ConfigDict
    store: Store
    problem: Problem
    programs: Programs
    draw_ticket: Callable[[TrainState, TrainState, int], TrainState]
    seeds: np.ndarray
    like: TrainState


def run_study(config: ConfigDict, store: Store) -> tuple[list[Record], float]:
    """Does what is missing of a study; a round that is finished is on disk at once.

    Args:
        config: As in `experiments/configs/lottery_digits.py`, checked.
        store: The study's folder.

    Returns:
        All records, and the wall time of all commands together, in seconds.

    Raises:
        ValueError: If the data, the batch, the network and the sparsities do not fit.
        FileNotFoundError: If the data is not there.
    """
    problem = load_problem(config)
    programs = make_programs(problem, config)
    seeds = np.asarray(config.seeds, np.int32)
    like = jax.eval_shape(programs.create, seeds)
    draw_ticket = _make_draw(config)
    bench = _Bench(config, store, problem, programs, draw_ticket, seeds, like)

    masks = sj.get_masks(like.opt_state)
    size = sum(mask.size for mask in jax.tree.leaves(masks)) // len(seeds)
    units = plan_units(config, size)
    missing = [unit for unit in units if not store.is_done(unit)]
    with Progress(
        sum(len(epochs_of(unit.form, config)) for unit in missing),
        examples_per_step=problem.epoch_steps * config.batch_size * len(seeds),
        description="Epochs of all seeds",
    ) as progress:
        done = 0
        for unit in missing:
            _do(bench, unit)
            done += len(epochs_of(unit.form, config))
            progress.update(done)
    seconds = sum(store.seconds(unit) for unit in units)
    return [record for unit in units for record in store.records(unit)], seconds


def _make_draw(config: ConfigDict) -> Callable[[TrainState, TrainState, int], Any]:
    """Makes (trained networks, those to rewind to, count) -> networks to train."""

    def draw(trained: TrainState, start: TrainState, count: jax.Array) -> TrainState:
        masks = sj.get_masks(trained.opt_state)
        params, masks = sj.lottery_ticket(
            trained.params, start.params, masks, keep=count
        )
        start = start._replace(params=params)
        return with_topology(start, masks, masks, config)

    return jax.jit(jax.vmap(draw, in_axes=(0, 0, None)))


def _do(bench: _Bench, unit: Unit) -> None:
    """Draws the tickets of a round, trains them, and writes down what comes of it."""
    config, store = bench.config, bench.store
    started = time.perf_counter()
    states = _start(bench, unit)
    for epoch in epochs_of(unit.form, config):
        if unit.form == DENSE and epoch in config.rewind_epochs:
            store.save(DENSE, epoch, states)
        rates = _rates(bench, epoch)
        states = bench.programs.train_epoch(states, bench.seeds, epoch, rates)
    accuracies = bench.programs.accuracy(states)
    active, prunable, empty = count_weights(states)
    if unit.form == DENSE:
        store.save(DENSE, config.epochs, states)
    elif unit.form not in SINGLE:
        store.save(unit.form, unit.round, states)
    records = [
        Record(
            form=unit.form,
            round=unit.round,
            sparsity=unit.sparsity,
            seed=seed,
            epochs=len(epochs_of(unit.form, config)),
            accuracy=float(accuracies[i]),
            active=int(active[i]),
            prunable=prunable,
            empty_layers=int(empty[i]),
        )
        for i, seed in enumerate(config.seeds)
    ]
    store.finish(unit, records, time.perf_counter() - started)
    if unit.form not in (DENSE, *SINGLE):
        store.forget(unit.form, unit.round - 1)


def _start(bench: _Bench, unit: Unit) -> TrainState:
    """Makes the networks that a round trains."""
    config, store = bench.config, bench.store
    if unit.form == DENSE:
        return bench.programs.create(bench.seeds)
    if unit.form in CONTROLS:
        ticket = store.load(ORIGINAL, unit.round, bench.like)
        masks = sj.get_masks(ticket.opt_state)
        if unit.form == RANDOM_WEIGHTS:
            start = bench.programs.create(bench.seeds + NEW_WEIGHTS)
        else:
            start = store.load(DENSE, 0, bench.like)
            masks = _shuffle(bench.seeds, unit.round, masks)
        return bench.programs.with_topology(start, masks, masks)
    if unit.round == 1 or unit.form == ONE_SHOT:
        trained = store.load(DENSE, config.epochs, bench.like)
    else:
        trained = store.load(unit.form, unit.round - 1, bench.like)
    epoch = rewind_epoch(unit.form)
    start = trained if epoch is None else store.load(DENSE, epoch, bench.like)
    return bench.draw_ticket(trained, start, unit.active)


@jax.jit
@jax.vmap
def _shuffle_one(seed: jax.Array, number: jax.Array, masks: PyTree) -> PyTree:
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    return sj.shuffle_masks(jax.random.fold_in(key, number), masks)


def _shuffle(seeds: np.ndarray, number: int, masks: PyTree) -> PyTree:
    """Shuffles the masks of a round's tickets, each by a key of its own."""
    return _shuffle_one(seeds, jnp.full(len(seeds), number), masks)


def _rates(bench: _Bench, epoch: int) -> np.ndarray:
    """The learning rates of an epoch; after the run's end they stay at the last."""
    steps = epoch * bench.problem.epoch_steps + np.arange(bench.problem.epoch_steps)
    rates = bench.problem.learning_rates
    return rates[np.minimum(steps, len(rates) - 1)]
