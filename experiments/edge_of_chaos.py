"""Finds how many layers SNIP leaves empty, by depth, on and off the edge of chaos.

    python -m experiments.edge_of_chaos --config=experiments/configs/edge_of_chaos.py \
        --workdir=DIR

Hayou et al., Robust Pruning at Initialization (arXiv 2002.08797): networks of equal
ReLU layers, whose weights are N(0, s_w^2 / width) and whose biases are N(0, s_b^2);
(2, 0) is on the edge of chaos.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import plots, results
from experiments.study import (
    Condition,
    Part,
    Record,
    Study,
    count_conditions,
    distinct,
    main,
    number_conditions,
    seeds_condition,
)

PyTree = Any
BY = ("weight_variance", "bias_variance", "depth")
# Depth is the first axis of both leaves; biases are not pruned.
_PRUNABLE: list[tuple[str, bool | sj.LayerRule]] = [
    ("kernels", sj.LayerRule(stacked=True)),
    ("biases", False),
]


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    yield (
        "variances",
        distinct(config.variances)
        and all(weight > 0 and bias >= 0 for weight, bias in config.variances),
        "different pairs of a number above 0 and one of at least 0",
    )
    yield (
        "depths",
        distinct(config.depths) and all(depth >= 1 for depth in config.depths),
        "different integers of at least 1",
    )
    yield from count_conditions(config, "width", "examples")
    yield from number_conditions(config, sparsity="[0, 1)")
    yield seeds_condition(config)


def _loss(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Computes the mean squared error."""
    inputs, targets = batch

    def layer(x: jax.Array, params: PyTree) -> tuple[jax.Array, None]:
        return jax.nn.relu(x @ params["kernels"] + params["biases"]), None

    outputs, _ = jax.lax.scan(layer, inputs, params)
    return jnp.mean((outputs - targets) ** 2)


def empty_layers(
    config: ConfigDict, variances: tuple[float, float], depth: int, seed: int
) -> int:
    """Prunes a random network by SNIP on random data and counts its empty layers."""
    # The same standard normal numbers for any variances.
    rng, width = np.random.default_rng(seed), config.width

    def normal(*shape: int, variance: float = 1.0) -> np.ndarray:
        return (variance**0.5 * rng.normal(size=shape)).astype(np.float32)

    params = {
        "kernels": normal(depth, width, width, variance=variances[0] / width),
        "biases": normal(depth, width, variance=variances[1]),
    }
    batch = normal(config.examples, width), normal(config.examples, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)  # what is counted here
        masks = sj.snip(
            _loss, params, [batch], None, config.sparsity, prunable=_PRUNABLE
        )
    return int(np.sum(~np.asarray(masks["kernels"]).any(axis=(1, 2))))


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each depth."""

    def of_depth(depth: int) -> Iterator[Record]:
        for variances, seed in itertools.product(config.variances, config.seeds):
            empty = empty_layers(config, variances, depth, seed)
            values = (*variances, depth, seed, empty)
            yield dict(zip((*BY, "seed", "empty"), values))

    return {f"depth_{depth}": partial(of_depth, depth) for depth in config.depths}


def _name(weight: float, bias: float) -> str:
    place = "on" if (weight, bias) == (2.0, 0.0) else "off"
    return f"{place} the edge of chaos: variances {weight:g} and {bias:g}"


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes the table."""
    mean = results.estimates(frame, "empty", BY, scale=1)
    any_empty = frame.groupby(list(BY))["empty"].agg(lambda empty: sum(empty > 0))
    rows = [["Layers", *map(str, config.depths)]]
    for start in config.variances:
        cells = [
            f"{results.interval_text(mean[*start, depth])} "
            f"({any_empty[*start, depth]} of {mean[*start, depth].samples})"
            for depth in config.depths
        ]
        rows.append([_name(*start), *cells])
    return (
        "Layers that SNIP leaves empty: mean over seeds ± half of the 95 % confidence "
        "interval (Student's t), and in brackets the networks with any. Variances are "
        "those of weights, times fan-in, and of biases.\n\n"
        + results.markdown_table(rows)
    )


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws the layers left empty against depth."""
    mean = results.estimates(frame, "empty", BY, scale=1)
    looks = [(plots.BLUE, "o"), (plots.RED, "s"), (plots.GREEN, "^"), (plots.PINK, "D")]
    with plots.figure(path, 5.6, 3.4) as drawn:
        axes = drawn.subplots()
        for start, look in zip(config.variances, itertools.cycle(looks)):
            style = plots.LineStyle(_name(*start), *look)
            values = [mean[*start, depth] for depth in config.depths]
            plots.draw_line(axes, config.depths, values, style)
        axes.set_xticks(sorted(config.depths))
        axes.set_xlabel("Layers")
        axes.set_ylabel("Layers left empty by SNIP")
        axes.grid(axis="y", color="0.92")
        axes.legend(loc="upper left")


STUDY = Study(
    "edge_of_chaos",
    "Layers that SNIP leaves empty, on and off the edge of chaos",
    conditions,
    parts,
    report,
    {"empty_by_depth": plot},
)

if __name__ == "__main__":
    main(STUDY)
