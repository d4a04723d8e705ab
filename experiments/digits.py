"""Compares sparse-training methods on scikit-learn's digits, in minutes on a laptop.

    python -m experiments.digits --config=experiments/configs/digits.py --workdir=DIR

The config file says what the comparison is, and what comes out.
"""

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.command_line import run_study
from experiments.comparison import before_training
from experiments.comparison import replicas as rep
from experiments.comparison.figures import plot_accuracy, plot_density
from experiments.comparison.methods import first_sparsity, make_transform
from experiments.comparison.networks import make_network, network_conditions
from experiments.comparison.results import (
    DensityHistory,
    MethodResult,
    Run,
    report,
    save_method,
    saved_method,
    write_results,
)
from experiments.conditions import (
    Condition,
    distinct,
    refuse_unless,
    seeds_condition,
)
from experiments.input.digits import Split, load_split
from experiments.record.flops import changes, run_flops
from experiments.record.progress import Progress
from experiments.record.study import claim_folder
from experiments.training.sparse import LABELS as TRAINING_LABELS
from experiments.training.sparse import NEED_SPARSITY, decayed_leaves, is_at_sparsity

# All methods: those of the other experiments, and those that prune before training.
LABELS = TRAINING_LABELS | before_training.LABELS


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
        "sparsities",
        distinct(config.sparsities) and all(0 < s < 1 for s in config.sparsities),
        "different numbers in (0, 1)",
    )
    yield seeds_condition(config, "deviation")
    yield from network_conditions(config)
    yield "split_seed", 0 <= config.split_seed < 2**32, "in [0, 2^32)"
    for field in ("validation_share", "test_share"):
        yield field, 0.02 <= config[field] <= 0.45, "in [0.02, 0.45]"
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
    groups = [list(pairs)]
    if name in NEED_SPARSITY:
        groups = [
            [pair for pair in pairs if pair[0] == sparsity]
            for sparsity in dict(pairs)  # each once, in their order
        ]
    trained = [_train_side_by_side(name, group, data, config) for group in groups]
    return MethodResult(
        method=name,
        label=LABELS[name],
        wall_seconds=time.perf_counter() - started,
        runs=[run for runs, _ in trained for run in runs],
        density=[history for _, histories in trained for history in histories],
    )


def _train_side_by_side(
    name: str, pairs: Sequence[tuple[float, int]], data: Split, config: ConfigDict
) -> tuple[list[Run], list[DensityHistory]]:
    """Trains runs on one vmapped axis; of one sparsity, where the method needs it."""
    model = make_network(config)
    rule = before_training.trained_as(name)
    steps_per_epoch = len(data.train.labels) // config.batch_size
    total_steps = config.epochs * steps_per_epoch
    learning_rate = optax.cosine_decay_schedule(config.learning_rate, total_steps)
    inner = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decayed_leaves(rule)),
        optax.sgd(learning_rate, momentum=config.momentum, nesterov=True),
    )
    known = pairs[0][0] if name in NEED_SPARSITY else None
    transform = make_transform(rule, inner, config, total_steps, known)

    runs = []
    for sparsity, seed in pairs:
        params = rep.first_params(model, seed, data.train.images)
        start = first_sparsity(rule, sparsity, config)
        replica = rep.make_replica(seed, sparsity, start, params, config.distribution)
        runs.append((replica, params))
    if name in before_training.LABELS:
        found = before_training.masks_before_training(
            name, model, [params for _, params in runs], pairs, data.train, config
        )
        runs = [
            (replica._replace(masks=masks), params)
            for (replica, params), masks in zip(runs, found)
        ]
    replicas, state = rep.stack_replicas(transform, runs)
    train_epoch = rep.compile_epoch(model, transform)

    # The active weights of each layer before training and after each step.
    before = rep.active_by_layer(sj.get_masks(state.opt_state))
    history = [{path: counts[:, None] for path, counts in before.items()}]
    best = rep.Best(len(pairs))
    sizes = rep.layer_sizes(sj.get_masks(state.opt_state))
    prunable = sum(sizes.values())
    wanted = np.array([sparsity for sparsity, _ in pairs])
    epoch_size = len(data.train.labels)
    with Progress(
        config.epochs,
        examples_per_step=epoch_size * len(pairs),
        description=f"{LABELS[name]}, {len(pairs)} runs: epoch",
    ) as progress:
        for epoch in range(config.epochs):
            seeds = [seed for _, seed in pairs]
            order = rep.batch_order(seeds, epoch, epoch_size, config.batch_size)
            state, counts = train_epoch(replicas, state, order, *data.train)
            history.append(jax.tree.map(np.asarray, rep.by_path(counts)))
            validation = rep.accuracy(model, state.params, *data.validation)
            active_now = sum(counts[:, -1] for counts in history[-1].values())
            is_sparse = is_at_sparsity(rule, wanted, 1 - active_now / prunable)
            if best.observe(np.asarray(validation), is_sparse):
                best.note(np.asarray(rep.accuracy(model, state.params, *data.test)))
            progress.update(epoch + 1)
    test = np.asarray(rep.accuracy(model, state.params, *data.test))

    masks = sj.get_masks(state.opt_state)
    nonzero = rep.active_by_layer(rep.nonzero_weights(state.params, masks))
    active = {
        path: np.concatenate([counts[path] for counts in history], axis=1)
        for path in sizes
    }
    one_image = jax.ShapeDtypeStruct((1, *data.test.images.shape[1:]), np.float32)
    forward = sj.forward_flops(model.apply, runs[0][1], one_image)
    updates = transform(runs[0][0]).is_update_step(np.arange(total_steps))
    trained = rep.trained_densities(state.opt_state)

    def finished(i: int, sparsity: float, seed: int) -> Run:
        count = sum(int(counts[i]) for counts in nonzero.values())
        densities = [
            {path: Fraction(int(active[path][i, t]), sizes[path]) for path in sizes}
            for t in range(total_steps + 1)
        ]
        flops = run_flops(
            rule,
            forward,
            changes(range(total_steps + 1), densities),
            total_steps,
            np.flatnonzero(updates),
            trained,
        )
        return Run(
            sparsity=sparsity,
            seed=seed,
            validation_accuracy=float(best.history[-1][i]),
            test_accuracy=float(test[i]),
            prunable=prunable,
            active=sum(int(active[path][i, -1]) for path in sizes),
            nonzero=count,
            realised_sparsity=1 - count / prunable,
            validation_history=[float(each[i]) for each in best.history],
            best_epoch=int(best.epoch[i]) + 1,
            best_test_accuracy=float(best.test[i]),
            dense_forward_flops=flops.dense_forward,
            inference_flops=flops.inference,
            training_flops=flops.training,
            empty_layers=sum(not active[path][i, -1] for path in sizes),
        )

    def density_at(sparsity: float) -> DensityHistory:
        chosen = [i for i, pair in enumerate(pairs) if pair[0] == sparsity]
        layers = {
            path: active[path][chosen, ::steps_per_epoch].mean(axis=0) for path in sizes
        }
        return DensityHistory(
            sparsity=sparsity,
            overall=(np.sum(list(layers.values()), axis=0) / prunable).tolist(),
            layers={path: (layers[path] / sizes[path]).tolist() for path in sizes},
        )

    return (
        [finished(i, *pair) for i, pair in enumerate(pairs)],
        [density_at(sparsity) for sparsity in dict(pairs)],
    )


def compare(config: ConfigDict, workdir: Path) -> None:
    """Trains every method, prints the table and writes all results.

    Methods that were finished in this folder before are not trained again.

    Args:
        config: As in `experiments/configs/digits.py`.
        workdir: A folder that can be written to.

    Raises:
        ValueError: If the configuration cannot be run, or differs from that of the
            folder in more than its methods; the message says why.
    """
    check_config(config)
    claim_folder(workdir, config, operational=("methods",))
    started = time.perf_counter()
    data = load_data(config)
    results = []
    for name in config.methods:
        result = saved_method(workdir, name)
        if result is None:
            result = train_method(name, data, config)
            save_method(workdir, result)
        results.append(result)
    title = (
        f"Test accuracy in %, mean ± standard deviation over {len(config.seeds)} seeds "
        "(realised sparsity in %)"
    )
    write_results(workdir, title, config.to_dict(), results)
    plot_accuracy(results, workdir / "accuracy.png")
    plot_density(results, workdir / "density.png")
    print(f"\n{report(title, results)}")
    print(f"{time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    run_study(compare)
