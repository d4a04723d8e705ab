"""Compares sparse-training methods on scikit-learn's digits, in minutes on a laptop.

    python -m experiments.digits --config=experiments/configs/digits.py --workdir=DIR

The config file says what the comparison is, and what comes out. The same command goes
on after the last method that an earlier one has finished.
"""

import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.command_line import run_study
from experiments.comparison import after_training
from experiments.comparison import replicas as rep
from experiments.comparison.courses import Course, density_history, run_of
from experiments.comparison.figures import plot_accuracy, plot_density
from experiments.comparison.first_masks import masks_of_runs
from experiments.comparison.methods import first_sparsity
from experiments.comparison.networks import make_network, network_conditions
from experiments.comparison.results import (
    MethodResult,
    from_json,
    report,
    to_json,
    write_results,
)
from experiments.comparison.training import make_program, train
from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
    split_conditions,
)
from experiments.input.digits import IMAGE_SHAPE, Split, load_split
from experiments.record.files import write_atomically
from experiments.record.study import claim_folder
from experiments.training import before_training
from experiments.training.sparse import LABELS as TRAINING_LABELS
from experiments.training.sparse import NEED_SPARSITY

# All methods: those of the other experiments, and those that prune before and after
# training.
LABELS = TRAINING_LABELS | before_training.LABELS | after_training.LABELS


def check_config(config: ConfigDict) -> None:
    """Refuses a configuration that cannot be run.

    Args:
        config: As in `experiments/configs/digits.py`.

    Raises:
        ValueError: If a field is out of range; the message says which.
    """
    refuse_unless(config, _conditions(config))


def _conditions(config: ConfigDict) -> Iterator[Condition]:
    yield (
        "methods",
        distinct(config.methods) and set(config.methods) <= set(LABELS),
        f"different names out of {', '.join(LABELS)}",
    )
    yield (
        "compared_with",
        set(config.compared_with) <= set(config.methods) - {"dense"},
        "names out of methods, dense not among them",
    )
    yield (
        "sparsities",
        distinct(config.sparsities) and all(0 < s < 1 for s in config.sparsities),
        "different numbers in (0, 1)",
    )
    yield from network_conditions(config)
    size = _prunable(make_network(config))
    yield (
        "sparsities",
        distinct([int(sj.keep_count(s, size)) for s in (*config.sparsities, 1.0)]),
        f"such that each leaves another number of the {size} prunable weights",
    )
    yield seeds_condition(config, "deviation")
    yield from split_conditions(config)
    train = len(load_data(config).train.labels)
    yield "batch_size", 1 <= config.batch_size <= train, f"in [1, {train}]"
    yield "epochs", config.epochs >= 1, "at least 1"
    total_steps = config.epochs * (train // config.batch_size)
    yield (
        "update_interval_steps",
        1 <= config.update_interval_steps < total_steps,
        f"in [1, {total_steps}), {total_steps} being the steps of the run",
    )
    yield "initialization_rounds", config.initialization_rounds >= 1, "at least 1"
    yield "grasp_images_per_class", config.grasp_images_per_class >= 1, "at least 1"
    yield "drive_dense_epochs", config.drive_dense_epochs >= 1, "at least 1"
    yield "round_fraction", 0 < config.round_fraction < 1, "in (0, 1)"
    yield "fine_tuning_factor", config.fine_tuning_factor > 0, "above 0"
    yield "learning_rate", config.learning_rate > 0, "above 0"
    yield "momentum", 0 <= config.momentum < 1, "in [0, 1)"
    yield "weight_decay", config.weight_decay >= 0, "at least 0"
    end_step = round(config.pruning_share * total_steps)
    yield (
        "pruning_share",
        1 <= end_step < total_steps,
        f"such that gradual pruning ends at a step in [1, {total_steps})",
    )
    yield (
        "distribution",
        config.distribution in ("erk", "er", "uniform"),
        '"erk", "er" or "uniform"',
    )
    for method in config.prune_rate:
        rate = config.prune_rate[method]
        yield f"prune_rate.{method}", 0 < rate < 1, "in (0, 1)"
    yield (
        "granet_st_initial_sparsity",
        0 <= config.granet_st_initial_sparsity <= min(config.sparsities),
        "in [0, 1), and not above the sparsities to end at",
    )


@functools.cache
def _prunable(model: nn.Module) -> int:
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    return sj.count_prunable(jax.eval_shape(sj.dense_masks, params))


def load_data(config: ConfigDict) -> Split:
    """Loads the digits, split as the configuration says.

    Args:
        config: As in `experiments/configs/digits.py`.

    Returns:
        The split, the same for every method and seed.
    """
    return load_split(config.validation_share, config.test_share, config.split_seed)


def train_method(
    name: str,
    data: Split,
    config: ConfigDict,
    pairs: Sequence[tuple[float, int]] | None = None,
) -> MethodResult:
    """Trains and tests a method at every sparsity with every seed, side by side.

    Args:
        name: A key of `LABELS`.
        data: The data.
        config: As in `experiments/configs/digits.py`.
        pairs: The (sparsity, seed) of each run; None for all of the configuration.

    Returns:
        What came out.
    """
    started = time.perf_counter()
    if pairs is None:
        sparsities = (0.0,) if name == "dense" else config.sparsities
        pairs = [(sparsity, seed) for sparsity in sparsities for seed in config.seeds]
    networks: dict[tuple[float, int], Sequence[Course]] = {}
    if name in after_training.LABELS:
        model = make_network(config)
        each = after_training.train_and_prune(name, model, pairs, data, config)
        networks.update(zip(pairs, each))
    else:
        groups = [list(pairs)]
        if name in NEED_SPARSITY:
            groups = [
                [pair for pair in pairs if pair[0] == sparsity]
                for sparsity in dict(pairs)  # each once, in their order
            ]
        for group in groups:
            courses = _train_side_by_side(name, group, data, config)
            networks.update((pair, [course]) for pair, course in zip(group, courses))
    return MethodResult(
        method=name,
        label=LABELS[name],
        wall_seconds=time.perf_counter() - started,
        runs=[run_of(*pair, courses) for pair, courses in networks.items()],
        density=[
            density_history(
                sparsity, [networks[pair] for pair in networks if pair[0] == sparsity]
            )
            for sparsity in dict.fromkeys(sparsity for sparsity, _ in networks)
        ],
    )


def _train_side_by_side(
    name: str, pairs: Sequence[tuple[float, int]], data: Split, config: ConfigDict
) -> list[Course]:
    """Trains runs on one vmapped axis; of one sparsity, where the method needs it."""
    model = make_network(config)
    rule = before_training.trained_as(name)
    known = pairs[0][0] if name in NEED_SPARSITY else None
    runs = []
    for sparsity, seed in pairs:
        params = rep.first_params(model, seed, data.train.images)
        start = first_sparsity(rule, sparsity, config)
        replica = rep.make_replica(seed, sparsity, start, params, config.distribution)
        runs.append((replica, params))
    if name in before_training.LABELS:
        found = masks_of_runs(
            name, model, [params for _, params in runs], pairs, data.train, config
        )
        runs = [
            (replica._replace(masks=masks), params)
            for (replica, params), masks in zip(runs, found)
        ]
    program = make_program(rule, model, data, config, sparsity=known)
    replicas, weights = rep.stack(runs)
    return train(program, replicas, weights, data, LABELS[name]).courses


def compare(config: ConfigDict, workdir: Path) -> None:
    """Trains every method, prints the tables and writes all results.

    What a method gave is on disk when it is done; the same comparison, of these or of
    more methods, goes on from there.

    Args:
        config: As in `experiments/configs/digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or the folder holds another
            comparison; the message says why.
    """
    check_config(config)
    claim_folder(workdir, config, operational=("methods", "compared_with"))
    parts = workdir / "parts"
    parts.mkdir(exist_ok=True)
    data = load_data(config)
    results = []
    for name in config.methods:
        part = parts / f"{name}.json"
        if not part.exists():
            write_atomically(part, to_json(train_method(name, data, config)))
        results.append(from_json(json.loads(part.read_text())))
    write_results(workdir, config.to_dict(), results)
    plot_accuracy(results, workdir / "accuracy.png")
    plot_density(results, workdir / "density.png")
    print(f"\n{report(results, config.compared_with)}")
    print(f"{sum(result.wall_seconds for result in results):.0f} s of training.")


if __name__ == "__main__":
    run_study(compare)
