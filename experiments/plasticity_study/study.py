"""The study: dense runs with checkpoints, each pruned in every setting and continued.

A dense run goes through its epochs with one order of examples for each seed; a pruned
network goes on with the same order, so that the control, which nothing is pruned of, is
the dense run itself as long as its learning rate is the schedule's.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.plasticity_study.problem import (
    Problem,
    continued_rates,
    load_problem,
)
from experiments.plasticity_study.prune import new_topology
from experiments.plasticity_study.replicas import (
    Programs,
    concatenate,
    count_weights,
    make_programs,
    pick,
    stack,
)
from experiments.plasticity_study.settings import Setting, all_settings, rate_labels
from experiments.plasticity_study.store import Record, Store
from experiments.record.progress import Progress
from experiments.training.state import TrainState

# Where GraNet's prune rate ends, in its official code.
_FINAL_EXCHANGE_RATE = 0.005

PyTree = Any
Item = TypeVar("Item")
Cell = tuple[str, int, Setting]  # label of the learning rates, seed, setting
Advance = Callable[[int], None]  # told how many epochs of one network are done


class _Bench(NamedTuple):
    """What all parts of a study need."""

    config: ConfigDict
    problem: Problem
    programs: Programs
    store: Store


def run_study(config: ConfigDict, store: Store) -> list[Record]:
    """Does what is missing of a study; what it finishes is on disk at once.

    Args:
        config: As in `experiments/configs/plasticity_digits.py`, checked.
        store: The study's folder.

    Returns:
        All records, ordered as the configuration names what they are of.

    Raises:
        ValueError: If the data, the batch and the network do not fit.
        FileNotFoundError: If the data is not there.
    """
    missing = {e: _missing(config, store, e) for e in config.prune_at_epochs}
    total = sum(map(len, missing.values())) * config.continue_epochs
    if total:
        problem = load_problem(config)
        bench = _Bench(config, problem, make_programs(problem, config), store)
        # One step of the bar is an epoch of one network, of dense ones at first.
        dense = max(e for e, cells in missing.items() if cells) * len(config.seeds)
        examples = problem.epoch_steps * config.batch_size
        with Progress(
            dense + total, examples_per_step=examples, description="Epochs"
        ) as progress:
            done = 0

            def advance(epochs: int) -> None:
                nonlocal done
                done += epochs
                progress.update(done)

            _train_dense(bench, [e for e in missing if missing[e]], advance)
            for epoch, cells in missing.items():
                if cells:
                    _continue_from(bench, epoch, cells, advance)
    return _in_order(config, store)


def _cells(config: ConfigDict) -> Iterator[Cell]:
    """Lists what is to be recorded of the checkpoints of an epoch."""
    everything = itertools.product(
        all_settings(config), config.seeds, rate_labels(config)
    )
    return ((label, seed, setting) for setting, seed, label in everything)


def _missing(config: ConfigDict, store: Store, epoch: int) -> list[Cell]:
    done = {record.cell for record in store.records(epoch)}
    return [cell for cell in _cells(config) if cell not in done]


def _in_order(config: ConfigDict, store: Store) -> list[Record]:
    records = []
    for epoch in config.prune_at_epochs:
        by_cell = {record.cell: record for record in store.records(epoch)}
        records += [by_cell[cell] for cell in _cells(config)]
    return records


def _train_dense(bench: _Bench, epochs: Sequence[int], advance: Advance) -> None:
    """Trains the dense runs as far as checkpoints are missing."""
    config, programs, store = bench.config, bench.programs, bench.store
    for seeds in _chunks(config.seeds, config.replicas_at_once):
        saved = {e for e in epochs if all(store.has_checkpoint(s, e) for s in seeds)}
        absent = sorted(set(epochs) - saved)
        advance(len(seeds) * (max(epochs) if not absent else 0))
        if not absent:
            continue
        states = programs.create(np.asarray(seeds, np.int32))
        start = max((e for e in saved if e < absent[0]), default=0)
        if start:
            states = _load(bench, seeds, start, states)
        advance(len(seeds) * start)
        started = time.perf_counter()
        for epoch in range(start, absent[-1] + 1):
            if epoch in absent:
                for i, seed in enumerate(seeds):
                    store.save_checkpoint(seed, epoch, pick(states, i))
                store.add(epoch, [], time.perf_counter() - started)
                started = time.perf_counter()
            if epoch < absent[-1]:
                states = _train_epoch(bench, states, seeds, epoch)
                advance(len(seeds))


def _train_epoch(
    bench: _Bench,
    states: TrainState,
    seeds: Sequence[int],
    epoch: int,
    rates: np.ndarray | None = None,
) -> TrainState:
    """Trains for an epoch, at the schedule's learning rates if no others are given."""
    if rates is None:
        first = epoch * bench.problem.epoch_steps
        rates = bench.problem.learning_rates[first : first + bench.problem.epoch_steps]
    return bench.programs.train_epoch(states, np.asarray(seeds, np.int32), epoch, rates)


def _load(
    bench: _Bench, seeds: Sequence[int], epoch: int, like: TrainState
) -> TrainState:
    one = jax.eval_shape(lambda states: pick(states, 0), like)
    return stack([bench.store.load_checkpoint(seed, epoch, one) for seed in seeds])


def _checkpoints(
    bench: _Bench, epoch: int
) -> tuple[TrainState, dict[int, float], PyTree]:
    """Loads an epoch's checkpoints, with their accuracies by seed and gradients."""
    states, grads = [], []
    accuracies: dict[int, float] = {}
    for seeds in _chunks(bench.config.seeds, bench.config.replicas_at_once):
        numbers = np.asarray(seeds, np.int32)
        like = jax.eval_shape(bench.programs.create, numbers)
        states.append(_load(bench, seeds, epoch, like))
        accuracies |= dict(zip(seeds, bench.programs.accuracy(states[-1]).tolist()))
        grads.append(bench.programs.first_gradients(states[-1], numbers, epoch))
    return concatenate(states), accuracies, concatenate(grads)


def _continue_from(
    bench: _Bench,
    epoch: int,
    missing: Sequence[Cell],
    advance: Advance,
) -> None:
    """Prunes the checkpoints of an epoch and trains on what comes of it."""
    config, programs = bench.config, bench.programs
    dense, before, grads = _checkpoints(bench, epoch)
    exchange_rate = _exchange_rate(config, bench.problem, epoch)
    tracks = continued_rates(bench.problem, config, epoch)
    labels = dict.fromkeys(label for label, _, _ in missing)
    pruned_networks = dict.fromkeys((setting, seed) for _, seed, setting in missing)
    waiting = set(missing)

    for chunk in _chunks(list(pruned_networks), config.replicas_at_once):
        started = time.perf_counter()
        states = _prune(bench, dense, grads, chunk, exchange_rate)
        straight_after = programs.accuracy(states)
        active, prunable, empty = count_weights(states)
        continued: dict[bytes, np.ndarray] = {}  # by the learning rates' bits
        for label in labels:
            if not any((label, seed, setting) in waiting for setting, seed in chunk):
                continue
            rates = tracks[label]
            if rates.tobytes() not in continued:
                after = _continue(bench, states, [s for _, s in chunk], epoch, rates)
                continued[rates.tobytes()] = programs.accuracy(after)
            last = continued[rates.tobytes()]
            records = [
                Record(
                    epoch,
                    label,
                    seed,
                    *setting,
                    before=before[seed],
                    pruned=float(straight_after[i]),
                    continued=float(last[i]),
                    active=int(active[i]),
                    prunable=prunable,
                    empty_layers=int(empty[i]),
                )
                for i, (setting, seed) in enumerate(chunk)
                if (label, seed, setting) in waiting
            ]
            bench.store.add(epoch, records, time.perf_counter() - started)
            started = time.perf_counter()
            advance(len(records) * config.continue_epochs)


def _prune(
    bench: _Bench,
    dense: TrainState,
    grads: PyTree,
    chunk: Sequence[tuple[Setting, int]],
    exchange_rate: float,
) -> TrainState:
    """Prunes checkpoints of all seeds, each setting for the seeds that it is with."""
    seeds = list(bench.config.seeds)

    def prune(setting: Setting, places: Sequence[int]) -> TrainState:
        states = pick(dense, places)
        kept, masks = jax.vmap(
            lambda params, grads: new_topology(params, grads, setting, exchange_rate)
        )(states.params, pick(grads, places))
        return bench.programs.with_topology(states, kept, masks)

    groups = itertools.groupby(chunk, key=lambda pair: pair[0])
    return concatenate(
        [
            prune(setting, [seeds.index(seed) for _, seed in group])
            for setting, group in groups
        ]
    )


def _continue(
    bench: _Bench,
    states: TrainState,
    seeds: Sequence[int],
    epoch: int,
    rates: np.ndarray,
) -> TrainState:
    for i, of_epoch in enumerate(rates):
        states = _train_epoch(bench, states, seeds, epoch + i, of_epoch)
    return states


def _exchange_rate(config: ConfigDict, problem: Problem, epoch: int) -> float:
    """GraNet's prune rate at an epoch of the run."""
    total = len(problem.learning_rates)
    rate = sj.cosine_prune_rate(config.exchange_rate, total, _FINAL_EXCHANGE_RATE)
    return float(rate(epoch * problem.epoch_steps))


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))
