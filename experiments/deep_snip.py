"""Trains deep networks that SNIP has pruned, with what keeps their signals in scale.

    python -m experiments.deep_snip --config=experiments/configs/deep_snip.py \
        --workdir=DIR

Hayou et al., Robust Pruning at Initialization (arXiv 2002.08797), on scikit-learn's
digits. All networks are ReLU layers without normalization, drawn on the edge of chaos:

    dense       x <- relu(W x), nothing pruned,
    snip        the same, pruned by SNIP,
    rescaled    the same masks, each layer multiplied so that it is on the edge again,
    residual    x <- x + relu(W x), pruned by SNIP,
    stable      x <- x + relu(W x) / sqrt(L), of L such layers, pruned by SNIP.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pandas as pd
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import digits_data as digits
from experiments import fit, plots, results
from experiments.plots import BLACK, BLUE, GREEN, RED, SKY, LineStyle
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
FORMS = {
    "dense": LineStyle("Dense", BLACK, "_"),
    "snip": LineStyle("SNIP", SKY, "s"),
    "rescaled": LineStyle("SNIP, rescaled", BLUE, "o"),
    "residual": LineStyle("Residual, SNIP", GREEN, "^"),
    "stable": LineStyle("Stable ResNet, SNIP", RED, "D"),
}
PAIRS = {"rescaled": "snip", "stable": "residual"}  # and what they are compared with
# Depth is the first axis of the equal layers' kernels.
_PRUNABLE: list[tuple[str, bool | sj.LayerRule]] = [
    ("kernels", sj.LayerRule(stacked=True)),
    ("kernel$", True),
    ("", False),
]


class DeepMLP(nn.Module):
    """A first layer, `depth` equal layers, and a last one: images -> logits."""

    depth: int
    width: int
    branch_scale: float | None = None  # of residual branches; None for no shortcuts

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the logits, float32[batch, 10]."""
        he, zeros = nn.initializers.he_normal(batch_axis=(0,)), nn.initializers.zeros
        shape = (self.depth, self.width, self.width)
        kernels = self.param("kernels", he, shape)
        biases = self.param("biases", zeros, shape[:2])

        def layer(x: jax.Array, leaves: Any) -> tuple[jax.Array, None]:
            y = nn.relu(x @ leaves[0] + leaves[1])
            return y if self.branch_scale is None else x + self.branch_scale * y, None

        dense = partial(nn.Dense, kernel_init=nn.initializers.he_normal())
        x = nn.relu(dense(self.width)(images.reshape(len(images), -1)))
        x, _ = jax.lax.scan(layer, x, (kernels, biases))
        return dense(digits.CLASSES)(x)


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    is_fine = distinct(config.depths) and all(type(d) is int for d in config.depths)
    allowed = "different integers of at least 1"
    yield "depths", is_fine and min(config.depths) >= 1, allowed
    yield from count_conditions(config, "width")
    yield from number_conditions(config, sparsity="(0, 1)")
    yield seeds_condition(config)
    yield from digits.recipe_conditions(config)


def rescale(params: PyTree, masks: PyTree) -> PyTree:
    """Puts every layer back on the edge of chaos, the equal ones each by itself."""
    params, masks = params["params"], masks["params"]
    equal = jax.vmap(sj.rescale_to_edge_of_chaos)(params["kernels"], masks["kernels"])
    return {"params": sj.rescale_to_edge_of_chaos(params, masks) | {"kernels": equal}}


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each form and depth: its seeds are trained at once."""
    data = digits.load(config)
    seeds, size = list(config.seeds), len(data.train.labels)
    epochs = range(config.epochs)
    order = [fit.batch_order(seeds, e, size, config.batch_size) for e in epochs]

    def train(form: str, depth: int) -> Iterator[Record]:
        scale = {"residual": 1.0, "stable": depth**-0.5}.get(form)
        model = DeepMLP(depth, config.width, scale)
        loss = fit.at(fit.cross_entropy(model), data.train)

        def start(place: int, seed: int) -> tuple[PyTree, PyTree]:
            params = fit.first_params(model, seed, data.train.images)
            if form == "dense":
                return params, sj.dense_masks(params, _PRUNABLE)
            batches, sparsity = order[0][place], config.sparsity
            masks = sj.snip(loss, params, batches, None, sparsity, prunable=_PRUNABLE)
            return rescale(params, masks) if form == "rescaled" else params, masks

        @jax.jit
        @jax.vmap
        def run(network: tuple[PyTree, PyTree], order: jax.Array) -> PyTree:
            params, masks = network
            rate = optax.cosine_decay_schedule(config.learning_rate, len(order))
            tx = sj.static_transform(optax.adam(rate), masks=masks)
            state = fit.State(*sj.init_sparse(tx, params))
            return fit.descend(loss, tx, state, order)[0].params

        networks = fit.stack([start(*each) for each in enumerate(seeds)])
        params = run(networks, np.concatenate(order, axis=1))
        accuracies = np.asarray(fit.accuracy(model, params, *data.test)).tolist()
        kernels = np.asarray(networks[1]["params"]["kernels"])
        empty = np.sum(~kernels.any(axis=(2, 3)), axis=1).tolist()
        for seed, *values in zip(seeds, accuracies, empty):
            record = {"form": form, "depth": depth, "seed": seed}
            yield record | dict(zip(("accuracy", "empty_layers"), values))

    cells = [(form, depth) for depth in config.depths for form in FORMS]
    return {f"{form}_{depth}": partial(train, form, depth) for form, depth in cells}


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    by, name = ["form", "depth"], lambda form: FORMS[form].label
    table = partial(results.pivot, columns="depth", heading="", rows=name, column=str)
    gains = [
        results.gains(
            frame[frame["form"].isin(pair)], "accuracy", by, to={"form": pair[1]}
        )
        for pair in PAIRS.items()
    ]
    pruned = frame[frame["form"] != "dense"]
    empty = results.estimates(pruned, "empty_layers", by, scale=1)
    return "\n\n".join(
        [
            f"By the number of equal layers, at {results.percent(config.sparsity)} "
            f"sparsity: mean over {len(config.seeds)} seeds ± half of the 95 % "
            "confidence interval (Student's t).",
            "## Test accuracy in percent",
            table(results.estimates(frame, "accuracy", by)),
            "## Rescaled minus SNIP, stable minus residual, in points",
            "Paired by seed; bold where the interval does not hold 0.",
            table(pd.concat(gains), text=results.gain_text),
            "## Equal layers that SNIP leaves empty",
            table(empty),
        ]
    )


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws test accuracy against depth."""
    values = results.estimates(frame, "accuracy", ["form", "depth"])
    with plots.figure(path, 6.4, 3.6) as drawn:
        axes = drawn.add_subplot()
        for form, style in FORMS.items():
            plots.draw_line(axes, values[form].index, list(values[form]), style)
        axes.set_xticks(config.depths)
        axes.set_xlabel("Equal layers")
        axes.set_ylabel("Test accuracy (%)")
        axes.grid(axis="y", color="0.92")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


TITLE = "Deep networks pruned by SNIP, on and off the edge of chaos, and their training"
STUDY = Study("deep_snip", TITLE, conditions, parts, report, {"by_depth": plot})

if __name__ == "__main__":
    main(STUDY)
