"""Learns AutoS's pruning criterion on one network, and tries it on others.

    python -m experiments.auto_s --config=experiments/configs/auto_s.py --workdir=DIR

For each seed, on a network of the source:

    prune by trained magnitude and rewind, round by round; count rounds survived,
    fit the scoring network to first weights and gradients, save it.

Then, with the scoring network read from its file, on a new network of every target:

    correlate scores with the rounds that the target's own weights survive,
    prune once at each sparsity, train, test.

All seeds run at once on one `jax.vmap` axis, each with a scoring network of its own, so
that they are independent of each other.

Data sets are those that scikit-learn has: digits, 1,797 scans of 8 x 8 pixels in 10
classes; breast cancer, 569 cell samples of 30 measurements in 2; wine, 178 samples of
13 measurements in 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes
from ml_collections import ConfigDict
from scipy.stats import spearmanr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split

import sparsejax as sj
from experiments import criterion, fit, plots, results, study
from experiments.criterion import ScoreMLP
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mlp import MLP
from experiments.plots import BLUE, GRAY, GREEN, RED, LineStyle
from sparsejax import scores
from sparsejax.initialization.averaging import mean_gradients

PyTree = Any
METHODS = {
    "auto_s": LineStyle("AutoS", RED, "o"),
    "snip": LineStyle("SNIP", BLUE, "s"),
    "magnitude": LineStyle("Magnitude", GREEN, "D"),
    "random": LineStyle("Random (ERK)", GRAY, "v"),
}
# What they rank by, as cells of Markdown tables.
SCORES = {
    "auto_s": "learned",
    "snip": r"\|w g\|",
    "magnitude": r"\|w\|",
    "random": "random",
}
# Weights of the source's own networks that were held out from fitting.
HELD_OUT = "held_out"
# What is drawn from a seed, each with a key of its own: the networks of the source and
# of a target differ, also where both have the same recipe.
_STREAMS = ("source", "source_order", "split", "fit", "target", "target_order", "masks")


class Recipe(NamedTuple):
    """A data set and a network for it."""

    label: str
    load: Callable[[], Any]  # scikit-learn's bunch
    shape: Sequence[int]  # what an example is reshaped to
    model: nn.Module  # maps inputs to logits


RECIPES = {
    "digits_mlp": Recipe("Digits, MLP", load_digits, (64,), MLP((64, 64), 10)),
    "digits_cnn": Recipe("Digits, CNN", load_digits, (8, 8, 1), DigitsCNN()),
    "breast_cancer_mlp": Recipe(
        "Breast cancer, deeper MLP", load_breast_cancer, (30,), MLP((100, 100, 100), 2)
    ),
    "wine_mlp": Recipe("Wine, deeper MLP", load_wine, (13,), MLP((60, 60, 60), 3)),
}
LABELS = {HELD_OUT: "Held-out weights"} | {n: r.label for n, r in RECIPES.items()}


class Examples(NamedTuple):
    """Inputs float32[n, ...] and their classes int32[n], of one seed or stacked."""

    inputs: Any
    labels: Any


class Case(NamedTuple):
    """A network before training, with its data; or those of all seeds, stacked."""

    params: PyTree
    order_key: jax.Array  # of the order of examples
    random_key: jax.Array  # of random masks and scores
    train: Examples
    test: Examples
    prune_set: Examples  # one batch to take gradients of


def conditions(config: ConfigDict) -> Iterator[study.Condition]:
    """Yields what must hold of the configuration."""
    known = ", ".join(RECIPES)
    yield "source", config.source in RECIPES, f"one of {known}"
    yield (
        "targets",
        study.distinct(config.targets) and set(config.targets) <= set(RECIPES),
        f"different names out of {known}",
    )
    yield study.seeds_condition(config)
    yield from study.number_conditions(config, test_share="[0.1, 0.5]")
    counts = ("prune_set_per_class", "steps", "score_width", "score_epochs")
    yield from study.count_conditions(config, *counts, "batch_size")
    names = {config.source, *config.targets}
    fewest = min(load_data(n, config)[0].labels.shape[1] for n in names)
    yield "batch_size", config.batch_size <= fewest, f"in [1, {fewest}]"
    yield from study.number_conditions(config, learning_rate="(0, inf)")
    within = dict.fromkeys(("label_sparsity", "fraction", "held_out"), "(0, 1)")
    yield from study.number_conditions(config, **within)
    yield (
        "sparsities",
        study.distinct(config.sparsities) and all(0 < s < 1 for s in config.sparsities),
        "different numbers in (0, 1)",
    )


def load_data(name: str, config: ConfigDict) -> tuple[Examples, Examples, Examples]:
    """Splits a data set for each seed: (train, test, first of each class), stacked.

    Every measurement is brought to mean 0 and deviation 1 over the training part, but
    for the digits' pixels, which all go to [-1, 1] alike.
    """
    recipe = RECIPES[name]
    bunch = recipe.load()

    def of_seed(seed: int) -> tuple[Examples, Examples, Examples]:
        train_inputs, test_inputs, train_labels, test_labels = train_test_split(
            bunch.data,
            bunch.target.astype(np.int32),
            test_size=config.test_share,
            stratify=bunch.target,
            random_state=seed,
        )
        if recipe.load is load_digits:
            mean, deviation = 8.0, 8.0
        else:
            mean, deviation = train_inputs.mean(axis=0), train_inputs.std(axis=0)

        def examples(inputs: np.ndarray, labels: np.ndarray) -> Examples:
            scaled = ((inputs - mean) / deviation).astype(np.float32)
            return Examples(scaled.reshape(-1, *recipe.shape), labels)

        train = examples(train_inputs, train_labels)
        chosen = [
            np.flatnonzero(train.labels == c)[: config.prune_set_per_class]
            for c in np.unique(train.labels)
        ]
        prune_set = Examples(*(part[np.concatenate(chosen)] for part in train))
        return train, examples(test_inputs, test_labels), prune_set

    splits = [of_seed(seed) for seed in config.seeds]
    stacked: Any = jax.tree.map(lambda *leaves: np.stack(leaves), *splits)
    return stacked


def draw_order(key: jax.Array, examples: int, config: ConfigDict) -> jax.Array:
    """Shuffles the examples anew in each epoch: int32[steps, batch_size]."""
    batches = examples // config.batch_size
    epochs = -(-config.steps // batches)
    keys = jax.random.split(key, epochs)
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, examples))(keys)
    used = shuffled[:, : batches * config.batch_size]
    return used.reshape(-1, config.batch_size)[: config.steps]


def make_programs(model: nn.Module, config: ConfigDict) -> Mapping[str, Any]:
    """Returns functions of the cases of all seeds, compiled at their first call."""
    loss = fit.cross_entropy(model)

    def train(case: Case, params: PyTree, masks: PyTree) -> PyTree:
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        tx = sj.static_transform(optax.adam(rate), masks=masks)
        order = draw_order(case.order_key, len(case.train.labels), config)
        start = fit.State(*sj.init_sparse(tx, params))
        return fit.descend(fit.at(loss, case.train), tx, start, order)[0].params

    def label(case: Case) -> PyTree:
        size = sj.count_prunable(sj.dense_masks(case.params))
        counts = sj.lottery_counts(size, [config.label_sparsity], config.fraction)
        rounds = criterion.iterative_masks(partial(train, case), case.params, counts)
        return sj.auto_s_labels(rounds)

    def gradients(case: Case) -> tuple[PyTree, PyTree]:
        masks = sj.dense_masks(case.params)
        return mean_gradients(loss, case.params, [case.prune_set], masks), masks

    def score(case: Case, variables: PyTree) -> dict[str, PyTree]:
        grads, masks = gradients(case)
        learned: Any = partial(ScoreMLP(config.score_width).apply, variables)
        return {
            "auto_s": sj.auto_s_scores(learned, case.params, grads, masks),
            "magnitude": scores.magnitude_scores(case.params, masks),
            "snip": scores.saliency_scores(case.params, grads, masks),
            "random": scores.random_scores(case.random_key, masks),
        }

    def accuracy(case: Case, masks: PyTree) -> jax.Array:
        trained = train(case, case.params, masks)
        logits: Any = model.apply(trained, case.test.inputs)
        return jnp.mean(jnp.argmax(logits, -1) == case.test.labels)

    def features(case: Case) -> PyTree:
        return sj.auto_s_features(case.params, *gradients(case))

    def keep_best(scores: PyTree, masks: PyTree, keep: int) -> PyTree:
        return sj.prune_by_score(scores, masks, keep=keep)

    def draw(case: Case, counts: PyTree) -> PyTree:
        return sj.random_masks(case.random_key, case.params, counts=counts)

    axes = {keep_best: (0, 0, None), draw: (0, None)}  # what is not by seed
    functions = (label, features, score, keep_best, draw, accuracy)
    return {f.__name__: jax.jit(jax.vmap(f, axes.get(f, 0))) for f in functions}


def _keys(config: ConfigDict, stream: str) -> jax.Array:
    """Returns one key a seed."""
    number = _STREAMS.index(stream)
    keys = jax.vmap(jax.random.key)(np.asarray(config.seeds, np.uint32))
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def draw_cases(name: str, config: ConfigDict, role: str) -> Case:
    """Draws the networks of all seeds, for the role "source" or "target"."""
    data, model = load_data(name, config), RECIPES[name].model
    init = jax.jit(jax.vmap(lambda key: model.init(key, data[0].inputs[0, :1])))
    params, order = init(_keys(config, role)), _keys(config, f"{role}_order")
    return Case(params, order, _keys(config, "masks"), *data)


def learn(config: ConfigDict, features: PyTree, labels: PyTree) -> Any:
    """Fits a scoring network for each seed: (variables, (scores, labels) held out)."""
    scorer = ScoreMLP(config.score_width)

    @jax.jit
    @jax.vmap
    def of_seed(
        split: jax.Array, key: jax.Array, features: PyTree, labels: PyTree
    ) -> Any:
        chosen, test = criterion.split_weights(split, features, labels, config.held_out)
        epochs = config.score_epochs
        variables = criterion.fit_score(scorer, key, chosen, epochs=epochs)
        weights, gradients = jnp.moveaxis(test.features, -1, 0)
        found = {
            "auto_s": scorer.apply(variables, test.features),
            "snip": jnp.abs(weights * gradients),
            "magnitude": jnp.abs(weights),
            "random": jax.random.uniform(jax.random.fold_in(key, 1), weights.shape),
        }
        return variables, (found, test.labels)

    return of_seed(_keys(config, "split"), _keys(config, "fit"), features, labels)


def _correlate(
    network: str, found: Mapping[str, PyTree], labels: PyTree, config: ConfigDict
) -> Iterator[study.Record]:
    """Ranks all weights of each network by each score, and by their labels."""

    def in_rows(tree: PyTree) -> np.ndarray:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    truth = in_rows(labels)
    for method in METHODS:
        for seed, *pair in zip(config.seeds, in_rows(found[method]), truth):
            value = float(spearmanr(*pair).statistic)
            yield _record(network, "correlation", method, None, seed, value)


def _record(*values: Any, active: Any = None, empty_layers: Any = None) -> study.Record:
    names = ("network", "measure", "method", "sparsity", "seed", "value")
    return dict(zip(names, values)) | {"active": active, "empty_layers": empty_layers}


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, study.Part]:
    """Returns the fit of the criteria, then two measures of each target."""
    # What is compiled for a network serves all parts that have it.
    programs = cache(lambda name: make_programs(RECIPES[name].model, config))
    paths = [workdir / "scores" / f"{seed}" for seed in config.seeds]

    def held_out() -> Iterator[study.Record]:
        run = programs(config.source)
        cases = draw_cases(config.source, config, "source")
        features, labels = run["features"](cases), run["label"](cases)
        variables, (found, truth) = learn(config, features, labels)
        for place, path in enumerate(paths):
            criterion.save_score(path, fit.take(variables, place))
        yield from _correlate(HELD_OUT, found, truth, config)

    def scored(target: str) -> tuple[Mapping[str, Any], Case, dict[str, PyTree]]:
        network = ScoreMLP(config.score_width)
        loaded = [criterion.load_score(path, network) for path in paths]
        cases = draw_cases(target, config, "target")
        run = programs(target)
        return run, cases, run["score"](cases, fit.stack(loaded))

    def correlation(target: str) -> Iterator[study.Record]:
        run, cases, found = scored(target)
        yield from _correlate(target, found, run["label"](cases), config)

    def accuracy(target: str) -> Iterator[study.Record]:
        run, cases, found = scored(target)
        one, dense = fit.take(cases.params, 0), jax.vmap(sj.dense_masks)(cases.params)
        size = sj.count_prunable(sj.dense_masks(one))
        plan = [(method, s) for method in METHODS for s in config.sparsities]
        for method, sparsity in [("dense", 0.0), *plan]:
            masks = dense
            if method == "random":
                masks = run["draw"](cases, sj.active_counts(one, sparsity))
            elif method != "dense":
                keep = sj.keep_count(sparsity, size)
                masks = run["keep_best"](found[method], dense, keep)
            layers = np.stack(jax.tree.leaves(fit.layer_counts(masks)), axis=1)
            values = np.asarray(run["accuracy"](cases, masks)).tolist()
            for seed, value, counts in zip(config.seeds, values, layers):
                sizes = {"active": counts.sum(), "empty_layers": (counts == 0).sum()}
                yield _record(
                    target, "accuracy", method, sparsity, seed, value, **sizes
                )

    found: dict[str, study.Part] = {HELD_OUT: held_out}
    for target in config.targets:
        found[f"{target}_correlation"] = partial(correlation, target)
        found[f"{target}_accuracy"] = partial(accuracy, target)
    return found


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    tested = frame[frame["measure"] == "accuracy"]
    texts = [
        f"Means over {len(config.seeds)} seeds ± half of the 95 % confidence interval "
        "(Student's t). Differences are paired by seed, and in bold where the interval "
        "does not hold 0.",
        "## Rank correlation with the rounds that weights survive, times 100",
        _correlation_table(frame[frame["measure"] == "correlation"]),
    ]
    by = ["method", "sparsity"]
    label = lambda method: METHODS[method].label
    table = partial(results.pivot, columns="sparsity", heading="Method", rows=label)
    for network, group in tested.groupby("network", sort=False):
        is_dense = group["method"] == "dense"
        [dense] = results.estimates(group[is_dense], "value", ["method"])
        texts += [
            f"## {LABELS[network]}: test accuracy in percent",
            f"Dense: {results.interval_text(dense)}.",
            table(results.estimates(group[~is_dense], "value", by)),
            "AutoS minus the others, in points:",
            table(_auto_s_minus(group[~is_dense], by), text=results.gain_text),
        ]
    means = tested.groupby(["network", *by], sort=False)["empty_layers"].mean()
    rows = [
        [LABELS[network], label(method), results.percent(sparsity), f"{mean:g}"]
        for (network, method, sparsity), mean in means[means > 0].items()
    ]
    if rows:
        heading = ["Network", "Method", "Sparsity", "Empty layers, a mean"]
        texts.append("## Layers without an active weight")
        texts.append(results.markdown_table([heading, *rows]))
    return "\n\n".join(texts)


def _auto_s_minus(frame: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    # Of negative values: others minus AutoS is AutoS minus others.
    negative = frame.assign(value=-frame["value"])
    return results.gains(negative, "value", by, to={"method": "auto_s"})


def _correlation_table(frame: pd.DataFrame) -> str:
    by = ["network", "method"]
    values, gain = results.estimates(frame, "value", by), _auto_s_minus(frame, by)
    compared = ("magnitude", "snip")
    rows = [["Weights of", *SCORES.values()]]
    rows[0] += [f"learned - {SCORES[name]}" for name in compared]
    for network in frame["network"].unique():
        cells = [results.interval_text(values[network, name]) for name in SCORES]
        cells += [results.gain_text(gain[network, name]) for name in compared]
        rows.append([LABELS[network], *cells])
    return results.markdown_table(rows)


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws how scores rank weights, and how networks pruned by them learn."""
    tested = frame[frame["measure"] == "accuracy"]
    columns = -(-(1 + len(config.targets)) // 2)
    with plots.figure(path, 4.2 * columns, 7.2) as drawn:
        first, *panels = drawn.subplots(2, columns, squeeze=False).flat
        _draw_correlations(first, frame[frame["measure"] == "correlation"])
        for axes, target in zip(panels, config.targets):
            group = tested[tested["network"] == target]
            is_dense = group["method"] == "dense"
            [dense] = results.estimates(group[is_dense], "value", ["method"])
            values = results.estimates(
                group[~is_dense], "value", ["method", "sparsity"]
            )
            plots.draw_accuracies(axes, values, METHODS, dense=dense, spread=0.1)
            axes.set_title(LABELS[target], fontsize=10)
        for axes in panels[len(config.targets) :]:
            axes.set_axis_off()
        handles = panels[0].get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=1 + len(METHODS))


def _draw_correlations(axes: Axes, frame: pd.DataFrame) -> None:
    networks = list(frame["network"].unique())
    values = results.estimates(frame, "value", ["method", "network"], scale=1)
    for place, (method, style) in enumerate(METHODS.items()):
        places = np.arange(len(networks)) + 0.12 * (place - (len(METHODS) - 1) / 2)
        line = list(values[method])
        plots.draw_line(axes, places, line, style, linestyle="none", markersize=6)
    names = [LABELS[network].replace(", ", ",\n") for network in networks]
    axes.set_xticks(range(len(networks)), names, fontsize=7)
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.set_ylabel("Rank correlation")
    axes.set_title("Scores and rounds survived", fontsize=10)
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)


STUDY = study.Study(
    "auto_s",
    "AutoS: a criterion learned on one network and used on others",
    conditions,
    parts,
    report,
    {"transfer": plot},
)

if __name__ == "__main__":
    study.main(STUDY)
