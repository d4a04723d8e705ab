"""Freezes weights on scikit-learn's digits, and prunes by the same masks.

    python -m experiments.freezing --config=experiments/configs/freezing_digits.py \
        --workdir=DIR

    pruned        the weights of a mask are trained, and the others are 0,
    frozen        the same are trained, and the others stay as drawn,
    edge-popup    scores of the weights: the largest of a layer say which are there,
    by layer      whole leaves are trained, and the others stay as drawn.

Biases and normalization have no masks. They are trained with the weights of a mask, and
not by edge-popup; methods by layer say what they train.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import digits_data as digits
from experiments import fit, plots, results
from experiments.models.digits_cnn import DigitsCNN
from experiments.plots import BLACK, BLUE, GRAY, ORANGE, SKY, LineStyle
from experiments.study import (
    Condition,
    Part,
    Record,
    Study,
    distinct,
    main,
    number_conditions,
    seeds_condition,
)

PyTree = Any
METHODS = {
    "dense": LineStyle("Dense", BLACK, "--"),
    "random_pruned": LineStyle("Random, pruned", GRAY, "v"),
    "random_frozen": LineStyle("Random, frozen", BLACK, "^"),
    "snip_pruned": LineStyle("SNIP, pruned", SKY, "s"),
    "snip_frozen": LineStyle("SNIP, frozen (FreezeNet)", BLUE, "o"),
    "edge_popup": LineStyle("Edge-popup", ORANGE, "D"),
    "kernels_frozen": LineStyle("All kernels frozen", "0.4", ":"),
    "norms": LineStyle("Normalization alone", "0.4", "-"),
    "output": LineStyle("Last layer alone", "0.4", "-."),
}
# The same masks: pruned by them, and frozen.
PAIRS = {"random_pruned": "random_frozen", "snip_pruned": "snip_frozen"}
WITH_DENSITY = (*PAIRS, *PAIRS.values(), "edge_popup")
# What is trained of whole leaves; the first that matches wins.
BY_LAYER = {
    "kernels_frozen": [("kernel", False)],
    "norms": [("GroupNorm", True), ("", False)],
    "output": [("output", True), ("", False)],
}


class Network(NamedTuple):
    """A network before training: its weights, and which of them are trained."""

    params: PyTree
    masks: PyTree
    sparsity: Any  # the fraction of the weights that edge-popup leaves out
    key: jax.Array  # of edge-popup's first scores


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    yield (
        "methods",
        distinct(config.methods)
        and set(config.methods) <= set(METHODS)
        and any(set(pair) <= set(config.methods) for pair in PAIRS.items()),
        f"different names out of {', '.join(METHODS)}, and among them a mask's both "
        "methods, pruned and frozen",
    )
    yield (
        "densities",
        distinct(config.densities) and all(0 < d < 1 for d in config.densities),
        "different numbers in (0, 1)",
    )
    yield seeds_condition(config)
    yield from digits.recipe_conditions(config)
    yield from number_conditions(config, edge_popup_learning_rate="(0, inf)")
    known = ("erk", "er", "uniform")
    yield "distribution", config.distribution in known, f"one of {', '.join(known)}"


def draw(
    method: str, density: float | None, seed: int, model: nn.Module, config: ConfigDict
) -> Network:
    """Draws a network and finds its masks."""
    train = digits.load(config).train
    params = fit.first_params(model, seed, train.images)
    sparsity = 0.0 if density is None else round(1 - density, 6)
    masks = sj.dense_masks(params)
    if method.startswith("random"):
        masks = fit.random_masks(seed, sparsity, params, config.distribution)
    elif method.startswith("snip"):
        order = fit.batch_order([seed], 0, len(train.labels), config.batch_size)[0]
        loss = fit.at(fit.cross_entropy(model), train)
        masks = sj.snip(loss, params, order, None, sparsity)
    elif method == "edge_popup":
        params = sj.signed_constant(params, sparsity)
    return Network(params, masks, jnp.float32(sparsity), jax.random.key(seed))


def train_one(
    method: str,
    model: nn.Module,
    config: ConfigDict,
    network: Network,
    order: Any,
    train: digits.Examples,
) -> tuple[PyTree, jax.Array, jax.Array]:
    """Trains: (params it runs on, numbers changed, prunable weights that are not 0)."""
    loss = fit.at(fit.cross_entropy(model), train)
    rate, first, read = config.learning_rate, network.params, lambda params: params
    if method == "edge_popup":
        rate = config.edge_popup_learning_rate
        first = sj.init_scores(network.key, network.params)
        read = lambda scores: sj.supermask_params(
            network.params, scores, network.sparsity
        )
    tx: optax.GradientTransformation = fit.sgd(config, len(order), rate)
    if method in PAIRS:
        tx = sj.static_transform(tx, masks=network.masks)
        first = sj.apply_masks(network.params, network.masks)
    elif method in PAIRS.values():
        tx = sj.freeze_transform(tx, masks=network.masks)
    elif method in BY_LAYER:
        tx = sj.freeze_transform(tx, trainable=BY_LAYER[method])
    loss_of = lambda variables, chosen: loss(read(variables), chosen)
    last, _ = fit.descend(loss_of, tx, fit.State(first, tx.init(first)), order)
    params = read(last.params)
    changed = jax.tree.map(lambda a, b: jnp.sum(a != b), first, last.params)
    nonzero = sj.count_active(sj.masks_of(params))
    return params, sum(jax.tree.leaves(changed), jnp.int32(0)), nonzero


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each method: its networks are trained at once."""
    model, data = DigitsCNN(digits.CLASSES), digits.load(config)

    def train(method: str) -> list[Record]:
        densities = config.densities if method in WITH_DENSITY else (None,)
        runs = [(density, seed) for density in densities for seed in config.seeds]
        networks = fit.stack([draw(method, *run, model, config) for run in runs])
        seeds, size = [seed for _, seed in runs], len(data.train.labels)
        epochs = range(config.epochs)
        order = [fit.batch_order(seeds, e, size, config.batch_size) for e in epochs]
        run = partial(train_one, method, model, config)
        params, changed, nonzero = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))(
            networks, np.concatenate(order, axis=1), data.train
        )
        columns = {
            "method": [method] * len(runs),
            "density": [density for density, _ in runs],
            "seed": seeds,
            "validation_accuracy": fit.accuracy(model, params, *data.validation),
            "accuracy": fit.accuracy(model, params, *data.test),
            "changed": changed,
            "nonzero": nonzero,
        }
        arrays = {name: np.asarray(values) for name, values in columns.items()}
        return pd.DataFrame(arrays).to_dict("records")

    return {method: partial(train, method) for method in config.methods}


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    by, is_whole = ["method", "density"], frame["density"].isna()
    label = lambda method: METHODS[method].label
    table = partial(results.pivot, columns="density", heading="Method", rows=label)
    masked, whole = frame[~is_whole], frame[is_whole]
    frozen_minus_pruned = pd.concat(
        results.gains(
            masked[masked["method"].isin(pair)],
            "accuracy",
            by,
            to={"method": pair[0]},
        )
        for pair in PAIRS.items()
        if set(pair) <= set(config.methods)
    )
    count_text = lambda count: f"{count.mean:,.0f}"
    rows = [["Method", "Test accuracy", "Numbers that training changed"]]
    changed = results.estimates(whole, "changed", ["method"], scale=1)
    for method, accuracy in results.estimates(whole, "accuracy", ["method"]).items():
        cells = results.interval_text(accuracy), count_text(changed[method])
        rows.append([label(method), *cells])
    return "\n\n".join(
        [
            f"Mean over {len(config.seeds)} seeds ± half of the 95 % confidence "
            "interval (Student's t).",
            "## Test accuracy in percent, by the share of the weights in the masks",
            table(results.estimates(masked, "accuracy", by)),
            "## Frozen minus pruned, under the same masks, in points",
            "Paired by seed; bold where the interval does not hold 0.",
            table(frozen_minus_pruned, text=results.gain_text),
            "## Whole leaves",
            results.markdown_table(rows),
            "## Numbers that training changed, a mean",
            table(results.estimates(masked, "changed", by, scale=1), text=count_text),
        ]
    )


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws test accuracy against the share of the weights in the masks."""
    is_whole = frame["density"].isna()
    masked = frame[~is_whole].assign(sparsity=1 - frame["density"])
    levels = results.estimates(frame[is_whole], "accuracy", ["method"])
    values = results.estimates(masked, "accuracy", ["method", "sparsity"])
    styles = {name: METHODS[name] for name in WITH_DENSITY}
    with plots.figure(path, 8.2, 4.6) as drawn:
        axes = drawn.add_subplot()
        plots.draw_accuracies(axes, values, styles, dense=levels.get("dense"))
        for method in ("kernels_frozen", "output"):
            if method in levels:
                name, color, line = METHODS[method]
                level = 100 - levels[method].mean
                axes.axhline(level, color=color, linestyle=line, lw=1, label=name)
        densities = sorted(config.densities, reverse=True)
        axes.set_xticks(range(len(densities)), map(results.percent, densities))
        axes.set_xlabel("Weights trained; of edge-popup, kept")
        seeds = len(config.seeds)
        title = f"Mean and 95 % confidence interval over {seeds} seeds"
        axes.set_title(title, fontsize=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


STUDY = Study(
    "freezing",
    "Freezing against pruning on scikit-learn's digits",
    conditions,
    parts,
    report,
    {"accuracy": plot},
)

if __name__ == "__main__":
    main(STUDY)
