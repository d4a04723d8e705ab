"""Compares sparse-training methods on scikit-learn's digits, in minutes on a laptop.

    python -m experiments.digits --config=experiments/configs/digits.py --workdir=DIR

The seeds of a method, and where it can its sparsities, train on one `jax.vmap` axis.

Methods that prune before training find their masks at a run's first weights. Those that
prune after training start from the dense network, trained as the others are. Then each
round prunes by magnitude, all layers together, and trains a whole run once more under
the masks, with the same order of examples and new momentum. With w the weights at the
end of the run before,

    one shot         to the sparsity at once; from w, at a part of the learning rate,
    fine-tuning      in rounds; from w, at that part of the learning rate,
    rate rewinding   in rounds; from w, at the learning rate of any other run,
    lottery ticket   in rounds; from the first weights, at that learning rate.

The papers fine-tune at the last learning rate; here that is 0, the end of a cosine.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import digits_data as data_set
from experiments import fit, methods, plots, results, study
from experiments.digits_data import CLASSES, IMAGE_SHAPE, Examples, Split
from experiments.methods import METHODS
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mlp import DigitsMLP
from experiments.record import Progress
from experiments.study import Condition
from sparsejax.trees import mask_leaves

PyTree = Any
Pair = tuple[float, int]  # sparsity and seed of a run
NETWORKS: Any = {"digits_cnn": DigitsCNN, "digits_mlp": DigitsMLP}


def make_network(config: ConfigDict) -> nn.Module:
    """Makes the network of a comparison, from images to logits."""
    return NETWORKS[config.model](CLASSES, **config.model_options)


# --- What a configuration must be -----------------------------------------------------


@functools.cache
def layer_sizes(model: nn.Module) -> dict[str, int]:
    """Counts the prunable weights of each layer."""
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    masks = jax.eval_shape(sj.dense_masks, params)
    return {path: mask.size for path, mask in mask_leaves(masks).items()}


def _total_steps(data: Split, config: ConfigDict) -> int:
    return config.epochs * (len(data.train.labels) // config.batch_size)


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    yield (
        "methods",
        study.distinct(config.methods) and set(config.methods) <= set(METHODS),
        f"different names out of {', '.join(METHODS)}",
    )
    yield (
        "compared_with",
        set(config.compared_with) <= set(config.methods) - {"dense"},
        "names out of methods, dense not among them",
    )
    yield (
        "sparsities",
        study.distinct(config.sparsities) and all(0 < s < 1 for s in config.sparsities),
        "different numbers in (0, 1)",
    )
    yield from _network_conditions(config)
    size = sum(layer_sizes(make_network(config)).values())
    yield (
        "sparsities",
        study.distinct(
            [int(sj.keep_count(s, size)) for s in (*config.sparsities, 1.0)]
        ),
        f"such that each leaves another number of the {size} prunable weights",
    )
    yield study.seeds_condition(config)
    yield from data_set.recipe_conditions(config)
    counts = ("initialization_rounds", "grasp_images_per_class", "drive_dense_epochs")
    yield from study.count_conditions(config, *counts)
    yield from study.number_conditions(
        config,
        round_fraction="(0, 1)",
        fine_tuning_factor="(0, inf)",
        pruning_share="(0, 1)",
        granet_st_initial_sparsity="[0, 1)",
    )
    yield from _method_conditions(config, _total_steps(data_set.load(config), config))


def _network_conditions(config: ConfigDict) -> Iterator[Condition]:
    yield "model", config.model in NETWORKS, f"one of {', '.join(NETWORKS)}"
    fields = {field.name for field in dataclasses.fields(NETWORKS[config.model])}
    options = sorted(fields - {"classes", "parent", "name"})
    yield (
        "model_options",
        set(config.model_options) <= set(options),
        f"of {config.model}'s: {', '.join(options) or 'none'}",
    )
    widths = config.model_options.get("widths", NETWORKS[config.model].widths)
    is_cnn = config.model == "digits_cnn"  # whose layers are fixed
    yield (
        "model_options.widths",
        isinstance(widths, tuple)
        and (len(widths) == len(DigitsCNN.widths) if is_cnn else len(widths) > 0)
        and all(isinstance(width, int) and width >= 1 for width in widths),
        f"a tuple of {len(DigitsCNN.widths) if is_cnn else 'one or more'} integers of "
        "at least 1",
    )


def _method_conditions(config: ConfigDict, total_steps: int) -> Iterator[Condition]:
    intervals = {"update_interval_steps": config.update_interval_steps}
    own = config.update_intervals.items()
    intervals |= {f"update_intervals.{n}": v for n, v in own if v is not None}
    for field, interval in intervals.items():
        yield (
            field,
            1 <= interval < total_steps,
            f"in [1, {total_steps}), {total_steps} being the steps of the run",
        )
    yield (
        "pruning_share",
        1 <= round(config.pruning_share * total_steps) < total_steps,
        f"such that gradual pruning ends at a step in [1, {total_steps})",
    )
    yield (
        "distribution",
        config.distribution in ("erk", "er", "uniform"),
        '"erk", "er" or "uniform"',
    )
    for name, rate in config.prune_rate.items():
        yield f"prune_rate.{name}", 0 < rate < 1, "in (0, 1)"
    yield (
        "granet_st_initial_sparsity",
        config.granet_st_initial_sparsity <= min(config.sparsities),
        "in [0, 1), and not above the sparsities to end at",
    )


# --- Training -------------------------------------------------------------------------


class Own(NamedTuple):
    """What is a run's own: its seed, the sparsity to end at, masks to start from."""

    seed: Any
    sparsity: Any
    masks: PyTree  # None where the method makes them


class Training(NamedTuple):
    """A run of training. A network that is pruned after training has had several."""

    ends: Mapping[str, Any]  # what is measured at its end
    active: Mapping[str, np.ndarray]  # by layer, before training and after each step
    flops: methods.RunFlops

    @property
    def epochs(self) -> int:
        """How many it has trained for."""
        return len(self.ends["validation_history"])


class Best(NamedTuple):
    """Each run's best epoch by validation accuracy, and its test accuracy."""

    validation: np.ndarray
    epoch: np.ndarray  # counted from 1; 0 for none
    test: np.ndarray


def better(
    best: Best, epoch: int, validation: Any, counts: Any, test: Callable[[], Any]
) -> Best:
    """Replaces the best epoch of the runs for which this one counts and is better.

    A network on its way to its sparsity, or in a dense phase, is not the one that is
    asked for: such an epoch does not count.
    """
    is_new = counts & (validation > best.validation)
    if not is_new.any():
        return best
    now = (validation, epoch, test())
    return Best(*(np.where(is_new, new, old) for new, old in zip(now, best)))


class Trainer:
    """Trains stacked runs with a method; compiled when they are first trained."""

    def __init__(
        self,
        method: str,
        data: Split,
        config: ConfigDict,
        *,
        learning_rate: float | None = None,
        sparsity: float | None = None,
    ) -> None:
        """Takes `sparsity` for methods that must know it to be compiled."""
        self.method, self.data, self.config = method, data, config
        self.model = make_network(config)
        self.total_steps = _total_steps(data, config)
        decayed = methods.decayed_leaves(method)
        inner = fit.sgd(config, self.total_steps, learning_rate, decayed)

        def transform(own: Own) -> sj.SparseTransformation:
            wanted = own.sparsity if sparsity is None else sparsity
            options = {"sparsity": wanted, "seed": own.seed, "masks": own.masks}
            return methods.sparse_optimizer(
                method, inner, config, self.total_steps, **options
            )

        def count(state: fit.State) -> PyTree:
            return sj.count_active(sj.get_masks(state.opt_state), "layer")

        self.transform = transform
        self.start = fit.compile_start(transform)
        self.steps = fit.compile_steps(fit.cross_entropy(self.model), transform, count)

    def train(
        self, own: Own, params: PyTree, what: str
    ) -> tuple[PyTree, list[Training]]:
        """Trains from any weights to the last epoch: (weights, how each run went)."""
        config, data, runs = self.config, self.data, len(own.seed)
        size, examples = sum(layer_sizes(self.model).values()), len(data.train.labels)
        seeds, wanted = np.asarray(own.seed).tolist(), np.asarray(own.sparsity)
        state = self.start(own, params)
        counts = fit.layer_counts(sj.get_masks(state.opt_state))
        history = [jax.tree.map(lambda n: np.asarray(n)[:, None], counts)]
        best = Best(np.full(runs, -1.0), np.zeros(runs, int), np.full(runs, np.nan))
        validation = []
        with Progress(
            config.epochs,
            examples_per_step=examples * runs,
            description=f"{what}, {runs} runs: epoch",
        ) as progress:
            for epoch in range(1, config.epochs + 1):
                order = fit.batch_order(seeds, epoch - 1, examples, config.batch_size)
                state, counts = self.steps(own, state, order, tuple(data.train))
                history.append(jax.device_get(counts))
                active = sum(n[:, -1] for n in jax.tree.leaves(history[-1]))
                is_sparse = methods.is_at_sparsity(
                    self.method, wanted, 1 - active / size
                )
                measure = functools.partial(_accuracy, self.model, state.params)
                validation.append(measure(data.validation))
                test = functools.partial(measure, data.test)
                best = better(best, epoch, validation[-1], is_sparse, test)
                progress.update(epoch)
        layers = jax.tree.map(lambda *n: np.concatenate(n, axis=1), *history)
        nonzero = fit.layer_counts(jax.vmap(sj.masks_of)(state.params))
        ends = {
            "validation_history": np.stack(validation, axis=1),
            "test_accuracy": test(),
            "best_epoch": best.epoch,
            "best_test_accuracy": best.test,
            "nonzero": np.sum(jax.tree.leaves(nonzero), axis=0),
        }
        flops = self._flops(fit.take((own, params), 0), state.opt_state)
        trainings = []
        for i in range(runs):
            active = {path: n[i] for path, n in mask_leaves(layers).items()}
            own_ends = {name: each[i].tolist() for name, each in ends.items()}
            trainings.append(Training(own_ends, active, flops(active)))
        return state.params, trainings

    def _flops(
        self, run: tuple[Own, PyTree], opt_state: PyTree
    ) -> Callable[[Mapping[str, np.ndarray]], methods.RunFlops]:
        """Returns what adds up the FLOPs of a run; `run` is any of them."""
        steps, sizes, (own, params) = self.total_steps, layer_sizes(self.model), run
        image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
        forward = sj.forward_flops(self.model.apply, params, image)
        updates = np.flatnonzero(self.transform(own).is_update_step(np.arange(steps)))
        backward = None
        if self.method == "top_kast":  # its B is the same for all runs and steps
            masks = fit.take(sj.top_kast_masks(opt_state)[1], 0)
            backward = sj.layer_densities(jax.device_get(masks))

        def add_up(active: Mapping[str, np.ndarray]) -> methods.RunFlops:
            densities = (
                {path: Fraction(int(n[t]), sizes[path]) for path, n in active.items()}
                for t in range(steps + 1)
            )
            history = methods.changes(range(steps + 1), densities)
            return methods.run_flops(
                self.method, forward, history, steps, updates, backward
            )

        return add_up


def _accuracy(model: nn.Module, params: PyTree, part: Examples) -> np.ndarray:
    return np.asarray(fit.accuracy(model, params, *part))


# --- Pruning during, before and after training ----------------------------------------


def train_together(
    name: str, pairs: Sequence[Pair], data: Split, config: ConfigDict
) -> list[Training]:
    """Trains runs on one axis; of one sparsity, where the method needs to know it."""
    model = make_network(config)
    weights = [fit.first_params(model, seed, data.train.images) for _, seed in pairs]

    def own_masks(sparsity: float, seed: int, params: PyTree) -> PyTree:
        first = methods.first_sparsity(name, sparsity, config)
        if first is None:
            return None
        return fit.random_masks(seed, first, params, config.distribution)

    if methods.finds_masks(name):
        masks = find_masks(name, model, weights, pairs, data.train, config)
    else:
        masks = [own_masks(*pair, params) for pair, params in zip(pairs, weights)]
    each = [
        Own(jnp.int32(seed), jnp.float32(sparsity), first)
        for (sparsity, seed), first in zip(pairs, masks)
    ]
    known = pairs[0][0] if METHODS[name].first == "own" else None
    trainer = Trainer(name, data, config, sparsity=known)
    return trainer.train(fit.stack(each), fit.stack(weights), METHODS[name].label)[1]


def find_masks(
    name: str,
    model: nn.Module,
    weights: Sequence[PyTree],
    pairs: Sequence[Pair],
    train: Examples,
    config: ConfigDict,
) -> list[PyTree]:
    """Finds the masks of runs before training, each of exactly its sparsity.

    They are found on the training examples in the order and in the batches of a run's
    first epoch; each round of a method sees those of another epoch. GraSP sees as many
    examples of each class. Layers left empty are not warned of: reports count them.
    """
    loss = fit.cross_entropy(model)  # one, so that runs share what is compiled of it

    def batches(seed: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        examples = len(train.labels)
        for chosen in fit.batch_order([seed], epoch, examples, config.batch_size)[0]:
            yield train.images[chosen], train.labels[chosen]

    def masks(params: PyTree, sparsity: Any, seed: int) -> PyTree:
        epochs, per_class = config.drive_dense_epochs, config.grasp_images_per_class
        return methods.masks_before_training(
            name,
            params,
            sparsity,
            loss_fn=loss,
            batches=functools.partial(batches, seed),
            balanced=lambda: [methods.class_balanced_batch(*train, per_class, seed)],
            dense_batches=lambda: itertools.chain.from_iterable(
                batches(seed, epoch) for epoch in range(epochs)
            ),
            apply_fn=model.apply,
            image_shape=IMAGE_SHAPE,
            rounds=config.initialization_rounds,
        )

    each_run: Sequence[tuple[Any, int]] = pairs
    if name == "synflow":  # sees no data: compiled once for all runs
        masks = jax.jit(masks, static_argnums=2)
        each_run = [(jnp.float32(sparsity), 0) for sparsity, _ in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)
        return [masks(own, *pair) for own, pair in zip(weights, each_run)]


class Form(NamedTuple):
    """How a network is pruned after training."""

    in_rounds: bool  # or at once
    rewinds_weights: bool  # to the first ones
    rewinds_rate: bool  # to that of any other run


FORMS = {
    "one_shot": Form(False, False, False),
    "fine_tuning": Form(True, False, False),
    "rate_rewinding": Form(True, False, True),
    "lottery": Form(True, True, True),
}


def train_and_prune(
    name: str, pairs: Sequence[Pair], data: Split, config: ConfigDict
) -> list[list[Training]]:
    """Trains dense networks, prunes them and trains them again.

    Returns all trainings of each run, the dense one first. In rounds, a network that
    was pruned to one sparsity is pruned on to the next.
    """
    form, label, model = FORMS[name], METHODS[name].label, make_network(config)
    seeds = list(dict.fromkeys(seed for _, seed in pairs))
    size = sum(layer_sizes(model).values())
    keep = {sparsity: int(sj.keep_count(sparsity, size)) for sparsity, _ in pairs}
    chains: Sequence[Sequence[int]] = [[count] for count in keep.values()]
    if form.in_rounds:
        chains = [sj.lottery_counts(size, sorted(keep), config.round_fraction)]
    first = fit.stack(
        [fit.first_params(model, seed, data.train.images) for seed in seeds]
    )
    numbers = jnp.asarray(seeds, jnp.int32)
    own = Own(numbers, jnp.zeros(len(seeds)), jax.vmap(sj.dense_masks)(first))
    trainer = Trainer(name, data, config)
    dense, trainings = trainer.train(own, first, f"{label}, dense")
    if not form.rewinds_rate:
        rate = config.fine_tuning_factor * config.learning_rate
        trainer = Trainer(name, data, config, learning_rate=rate)
    found = {}  # by active weights, the trainings of each seed
    for chain in chains:
        params, masks, so_far = dense, own.masks, [[each] for each in trainings]
        for number, count in enumerate(chain, 1):
            origin = first if form.rewinds_weights else params
            params, masks = _prune(params, origin, masks, count)
            sparsity = jnp.full(len(seeds), 1 - count / size)
            what = f"{label}, round {number} of {len(chain)}"
            params, again = trainer.train(Own(numbers, sparsity, masks), params, what)
            so_far = [[*before, one] for before, one in zip(so_far, again)]
            found[count] = so_far
    return [found[keep[sparsity]][seeds.index(seed)] for sparsity, seed in pairs]


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def _prune(
    trained: PyTree, origin: PyTree, masks: PyTree, count: Any
) -> tuple[PyTree, PyTree]:
    return sj.lottery_ticket(trained, origin, masks, keep=count)


# --- Records --------------------------------------------------------------------------


def train_method(
    name: str, data: Split, config: ConfigDict, pairs: Sequence[Pair] | None = None
) -> list[study.Record]:
    """Trains and tests a method at every sparsity with every seed, or in some pairs."""
    if pairs is None:
        sparsities = (0.0,) if name == "dense" else config.sparsities
        pairs = list(itertools.product(sparsities, config.seeds))
    alike = {s: [pair for pair in pairs if pair[0] == s] for s, _ in pairs}
    networks: dict[Pair, list[Training]] = {}
    if name in FORMS:
        networks.update(zip(pairs, train_and_prune(name, pairs, data, config)))
    else:
        own = METHODS[name].first == "own"
        for group in alike.values() if own else [pairs]:
            trained = train_together(name, group, data, config)
            networks.update((pair, [one]) for pair, one in zip(group, trained))
    sizes = layer_sizes(make_network(config))
    records: list[study.Record] = []
    for group in alike.values():
        # A mean over seeds, in the record of the first of them.
        densities = mean_densities([networks[pair] for pair in group], sizes)
        for sparsity, seed in group:
            record = {"method": name, "sparsity": sparsity, "seed": seed}
            record |= _measured(networks[sparsity, seed], sum(sizes.values()))
            records.append(record | densities)
            densities = dict.fromkeys(densities)
    return records


def _measured(trainings: Sequence[Training], prunable: int) -> dict[str, Any]:
    """Lays a network out: accuracies, masks and weights are those of the last run."""
    ends, layers, flops = trainings[-1]
    final = [int(counts[-1]) for counts in layers.values()]
    return {
        "validation_accuracy": _short(ends["validation_history"][-1]),
        "test_accuracy": _short(ends["test_accuracy"]),
        "prunable": prunable,
        "active": sum(final),
        # But for active ones that have grown and had no gradient since.
        "nonzero": ends["nonzero"],
        "realized_sparsity": 1 - ends["nonzero"] / prunable,
        "validation_history": [_short(each) for each in ends["validation_history"]],
        "best_epoch": ends["best_epoch"],
        "best_test_accuracy": _short(ends["best_test_accuracy"]),
        "dense_forward_flops": flops.dense_forward,
        "inference_flops": flops.inference,
        # Of all its training; what it takes to find masks before it is left out.
        "training_flops": sum(each.flops.training for each in trainings),
        "training_epochs": sum(each.epochs for each in trainings),
        "empty_layers": final.count(0),
    }


def _short(value: float) -> float:
    return round(value, 6)  # as many digits as float32 has


def mean_densities(
    networks: Sequence[Sequence[Training]], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Averages densities at the start and after each epoch, overall and by layer.

    Of networks that were trained several times, each time under other masks, at the
    start and the end of each training.
    """
    epochs: list[int] = []
    layers: dict[str, list[float]] = {path: [] for path in sizes}
    for number, alike in enumerate(zip(*networks)):
        length = alike[0].epochs
        points = np.arange(0, length + 1, length if len(networks[0]) > 1 else 1)
        epochs += (number * length + points).tolist()
        for path, counts in alike[0].active.items():
            steps = (len(counts) - 1) // length * points
            mean = np.mean([each.active[path][steps] for each in alike], axis=0)
            layers[path] += np.round(mean / sizes[path], 6).tolist()
    weighted = np.sum([sizes[path] * np.array(layers[path]) for path in sizes], axis=0)
    overall = np.round(weighted / sum(sizes.values()), 6).tolist()
    return {"density_epochs": epochs, "density": overall, "layer_densities": layers}


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, study.Part]:
    """Returns a part for each method."""
    data = data_set.load(config)
    part = functools.partial
    return {name: part(train_method, name, data, config) for name in config.methods}


# --- Tables ---------------------------------------------------------------------------


def _label(key: Any) -> str:
    return METHODS[key].label if key in METHODS else str(key)


def _epochs_text(epochs: pd.Series) -> str:
    """Returns how long networks were trained in all, as "20" or "160 to 480"."""
    least, most = epochs.min(), epochs.max()
    return f"{least}" if least == most else f"{least} to {most}"


def accuracy_table(frame: pd.DataFrame) -> str:
    """Tabulates test accuracy, realized sparsity, and the epochs where they differ."""
    epochs = frame.groupby("method")["training_epochs"].agg(_epochs_text)
    by = ["method", "epochs", "sparsity"]
    if epochs.nunique() == 1:
        by.remove("epochs")
    frame = frame.join(epochs.rename("epochs"), on="method")
    cells = results.estimates(frame, "test_accuracy", by).map(results.interval_text)
    zeros = frame.groupby(by, sort=False)["realized_sparsity"].mean()
    return results.pivot(
        cells + zeros.map(lambda share: f" ({100 * share:.2f})"),
        "sparsity",
        heading=[name.capitalize() for name in by[:-1]],
        text=str,
        rows=_label,
        column=lambda sparsity: f"{results.percent(sparsity)} sparse",
    )


def epochs_table(frame: pd.DataFrame) -> str:
    """Tabulates the epochs of methods that take longer than the shortest, if any do."""
    shortest = frame["training_epochs"].min()
    longer = frame.groupby("method")["training_epochs"].transform("max") > shortest
    if not longer.any():
        return ""
    by = ["method", "sparsity"]
    epochs = frame[longer].groupby(by, sort=False)["training_epochs"].agg(_epochs_text)
    return results.pivot(epochs, "sparsity", heading="Method", text=str, rows=_label)


def difference_table(frame: pd.DataFrame, reference: str) -> str:
    """Tabulates test accuracy minus that of one method, paired by seed."""
    by, to = ["method", "sparsity"], {"method": reference}
    gains = results.gains(frame, "test_accuracy", by, to=to)
    heading = f"Minus {METHODS[reference].label}"
    text = results.gain_text
    return results.pivot(gains, "sparsity", heading=heading, text=text, rows=_label)


def failures_table(frame: pd.DataFrame) -> str:
    """Counts runs that end near chance or with empty layers, if there are any."""
    least = 1.5 / CLASSES
    heading = ["Method", "Sparsity", f"Runs below {results.percent(least)}"]
    rows = [[*heading, "With empty layers", "Empty layers, a mean"]]
    groups: Any = frame.groupby(["method", "sparsity"], sort=False)
    for (method, sparsity), runs in groups:
        lost = (runs["test_accuracy"] < least).sum()
        empty = runs["empty_layers"]
        if lost or empty.any():
            counts = (f"{n} of {len(runs)}" for n in (lost, (empty > 0).sum()))
            share = results.percent(sparsity)
            rows.append([_label(method), share, *counts, f"{empty.mean():.1f}"])
    return results.markdown_table(rows) if len(rows) > 1 else ""


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables, each under a sentence that says what it shows."""
    seeds = frame["seed"].nunique()
    texts = [
        f"Test accuracy in %, mean over {seeds} seeds ± half of the 95 % confidence "
        "interval (Student's t), and in brackets the realized sparsity in %.",
        accuracy_table(frame),
    ]
    if longer := epochs_table(frame):
        texts += [
            "Epochs of all training that leads to a network, by sparsity.",
            longer,
        ]
    pruned = set(frame["method"]) - {"dense"}
    for reference in config.compared_with if len(pruned) > 1 else ():
        texts += [
            "Difference in points, paired by seed, ± half of the 95 % confidence "
            "interval (Student's t), bold where the interval does not hold 0.",
            difference_table(frame, reference),
        ]
    if failures := failures_table(frame):
        chance = results.percent(1 / CLASSES)
        texts += [f"Runs that failed; guessing gives {chance}.", failures]
    return "\n\n".join(texts)


# --- Figures --------------------------------------------------------------------------


def panels(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Groups methods by when they prune, if any does so before or after training."""
    names = [name for name in frame["method"].unique() if name != "dense"]
    if not any(methods.finds_masks(name) or name in FORMS for name in names):
        return {"": names}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(METHODS[name].when, []).append(name)
    titles = {}
    for when, chosen in groups.items():
        epochs = _epochs_text(frame["training_epochs"][frame["method"].isin(chosen)])
        titles[f"{when.capitalize()} training: {epochs} epochs"] = chosen
    return titles


def _style(name: str, more: str) -> plots.LineStyle:
    method = METHODS[name]
    return plots.LineStyle(method.label + more, method.color, method.marker)


def plot_accuracy(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws test accuracy against sparsity, a panel for each time of pruning."""
    values = results.estimates(frame, "test_accuracy", ["method", "sparsity"])
    is_dense = values.index.get_level_values("method") == "dense"
    dense = values[is_dense].iloc[0] if is_dense.any() else None
    epochs = frame.groupby("method")["training_epochs"].agg(_epochs_text)
    groups = panels(frame)
    alone = len(groups) == 1
    spread = "Mean and 95 % confidence interval over seeds"
    size = (7.2, 4.6) if alone else (4.6 * len(groups), 5.2)
    with plots.figure(path, *size) as drawn:
        row = drawn.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (title, chosen) in zip(row, groups.items()):
            differ = epochs[chosen].nunique() > 1
            styles = {
                name: _style(name, f", {epochs[name]} epochs" * differ)
                for name in chosen
            }
            plots.draw_accuracies(
                axes, values[~is_dense], styles, dense=dense, spread=0.07
            )
            axes.set_title(spread if alone else title, fontsize=10)
            axes.legend(loc="lower left", fontsize=9)
        for axes in row[1:]:
            axes.set_ylabel("")
        if alone:
            row[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            drawn.suptitle(spread, fontsize=10)


def plot_density(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws density over training, overall and by layer, a panel for each method.

    Where there are several sparsities, the one in the middle is drawn.
    """
    frame = frame[frame["density"].notna()]
    names = frame["method"].unique()
    columns = min(4, len(names) + 1)
    rows = -(-(len(names) + 1) // columns)
    paths = list(frame["layer_densities"].iloc[0])
    shades = matplotlib.colormaps["cividis"](np.linspace(0.95, 0.1, len(paths)))
    with plots.figure(path, 2.9 * columns, 2.6 * rows) as drawn:
        grid = drawn.subplots(rows, columns, sharey=True, squeeze=False)
        *all_axes, legend = grid.flat[: len(names) + 1]
        for axes, name in zip(all_axes, names):
            histories = frame[frame["method"] == name]
            history = histories.iloc[len(histories) // 2]
            epochs, sparsity = history["density_epochs"], history["sparsity"]
            color = METHODS[name].color
            axes.plot(epochs, history["density"], color=color, linewidth=4)
            for layer, shade in zip(paths, shades):
                densities = history["layer_densities"][layer]
                axes.plot(epochs, densities, color=shade, linewidth=1.2)
            at = f", {results.percent(sparsity)} sparse" if sparsity else ""
            axes.set_title(_label(name) + at, color=color, fontsize=10)
            axes.set_yscale("log")
            axes.grid(color="0.92")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{100 * d:g}"))
        for axes in grid[:, 0]:
            axes.set_ylabel("Density (%)")
        for axes in all_axes[-columns:]:
            axes.set_xlabel("Epoch")
        layers = [
            path.removeprefix("params/").removesuffix("/kernel") for path in paths
        ]
        legend.legend(
            [
                Line2D([], [], color="0.6", linewidth=4),
                *(Line2D([], [], color=shade, linewidth=1.2) for shade in shades),
            ],
            ["all layers", *layers],
            loc="center",
            title="Active weights of",
            ncols=1 + len(paths) // 12,
            fontsize="medium" if len(paths) < 12 else "xx-small",
        )
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()


STUDY = study.Study(
    "digits",
    "Methods compared on scikit-learn's digits",
    conditions,
    parts,
    report,
    {"accuracy": plot_accuracy, "density": plot_density},
    operational=("methods", "compared_with"),
)

if __name__ == "__main__":
    study.main(STUDY)
