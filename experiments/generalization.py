"""Prunes two-layer networks at random before training, and tests how they generalize.

    python -m experiments.generalization \
        --config=experiments/configs/generalization.py --workdir=DIR

The claim of arXiv 2301.00335, in our reading. An example of class y in 1 .. K is a
signal patch and a noise patch of d numbers,

    x1 = mu_y,    x2 = xi ~ N(0, s^2 I_d),

with K signals mu_k, orthogonal and of one norm. Signal k lies on its own coordinates.
Every class has m neurons, which read both patches with the same weights, and a second
layer of ones that is not trained:

    F_k(x) = 1/m sum_r phi(<w_kr, x1>) + phi(<w_kr, x2>),    phi(z) = max(0, z)^q.

The loss is the cross-entropy of softmax(F). What generalizes is <w, mu>: the noise of a
new example is independent of all that was learned.
"""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import fit, plots, results
from experiments.plots import BLUE, GREEN, ORANGE, PINK, RED
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
_LEAST_LOSS = 1e-8  # where a logarithm must stop


class Examples(NamedTuple):
    """A data set: int32[n] classes, each as often, and float32[n, d] noise patches."""

    labels: jax.Array
    noise: jax.Array


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    counts = ("classes", "dimension", "width", "steps", "signal_support")
    yield from count_conditions(config, *counts, "train_examples", "test_examples")
    yield "classes", config.classes >= 2, "at least 2"
    # Below 1 the activation is no function.
    above = "(0, inf)"
    yield from number_conditions(config, power="[1, inf)", signal_strength=above)
    yield from number_conditions(config, init_scale=above, learning_rate=above)
    most = config.dimension // config.classes
    yield (
        "signal_support",
        config.signal_support <= most,
        f"from 1 to {most}: signals are orthogonal and share no coordinate",
    )
    for field in ("train_examples", "test_examples"):
        yield (
            field,
            config[field] % config.classes == 0,
            f"a multiple of the {config.classes} classes, which are balanced",
        )
    yield (
        "densities",
        distinct(config.densities)
        and all(0 < density <= 1 for density in config.densities)
        and 1.0 in config.densities,
        "different numbers in (0, 1] with 1 among them, which is compared with",
    )
    yield (
        "noise_stds",
        distinct(config.noise_stds) and all(0 < s < np.inf for s in config.noise_stds),
        "different numbers above 0",
    )
    yield seeds_condition(config)


def signals(config: ConfigDict) -> np.ndarray:
    """Returns the signals float32[K, d], each of equal entries on its coordinates."""
    support = config.signal_support
    unit = np.kron(np.eye(config.classes), np.full(support, support**-0.5))
    padded = np.zeros((config.classes, config.dimension), np.float32)
    padded[:, : unit.shape[1]] = config.signal_strength * unit
    return padded


def draw_examples(
    key: jax.Array, count: int, noise_std: Any, config: ConfigDict
) -> Examples:
    """Draws examples, a multiple of the number of classes."""
    noise = noise_std * jax.random.normal(key, (count, config.dimension))
    return Examples(jnp.arange(count) % config.classes, noise)


def _aligned(neurons: jax.Array, patches: Any) -> jax.Array:
    """Computes <w_kr, patch> of all patches, classes and neurons."""
    return jnp.einsum("kmd,nd->nkm", neurons, patches)


def logits(neurons: jax.Array, examples: Examples, config: ConfigDict) -> jax.Array:
    """Computes F(x), float32[n, K], with the weights float32[K, m, d]."""

    def read(patches: Any) -> jax.Array:
        active = jnp.maximum(_aligned(neurons, patches), 0) ** config.power
        return jnp.mean(active, axis=-1)

    # A signal patch is one of K: each is read once.
    return read(signals(config))[examples.labels] + read(examples.noise)


def loss_of(neurons: jax.Array, examples: Examples, config: ConfigDict) -> jax.Array:
    """Computes the mean cross-entropy in nats."""
    scores = logits(neurons, examples, config)
    each = optax.softmax_cross_entropy_with_integer_labels(scores, examples.labels)
    return jnp.mean(each)


def measure(
    neurons: jax.Array, train: Examples, test: Examples, config: ConfigDict
) -> dict[str, jax.Array]:
    """Computes loss and accuracy, and how far weights are aligned with patches.

    Alignment is max_r <w_yr, patch>, a mean over the signals or the examples.
    """

    def accuracy(examples: Examples) -> jax.Array:
        guesses = jnp.argmax(logits(neurons, examples, config), axis=-1)
        return jnp.mean(guesses == examples.labels)

    def strongest(patches: Any, labels: Any) -> jax.Array:
        of_class = _aligned(neurons, patches)[jnp.arange(len(labels)), labels]
        return jnp.mean(jnp.max(of_class, axis=-1))

    return {
        "train_loss": loss_of(neurons, train, config),
        "train_accuracy": accuracy(train),
        "test_loss": loss_of(neurons, test, config),
        "test_accuracy": accuracy(test),
        "signal": strongest(signals(config), jnp.arange(config.classes)),
        "noise": strongest(train.noise, train.labels),
        "test_noise": strongest(test.noise, test.labels),
    }


def bernoulli_masks(key: jax.Array, weights: jax.Array, density: Any) -> jax.Array:
    """Keeps every weight with the same probability, independently, as in the paper.

    With the same key the masks of a lower density lie within those of a higher one.
    """
    return jax.random.uniform(key, weights.shape) < density


def train_one(
    config: ConfigDict, noise_std: Any, density: Any, seed: Any
) -> dict[str, jax.Array]:
    """Prunes a network at random, trains it, and returns what is measured.

    By gradient descent on all examples, with steps of one length: the gradient is
    divided by its norm. The path is that of gradient descent; without the division it
    would take thousands of times more steps at the lowest density than at the highest.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    train = draw_examples(keys[0], config.train_examples, noise_std, config)
    test = draw_examples(keys[1], config.test_examples, noise_std, config)
    shape = (config.classes, config.width, config.dimension)
    neurons = config.init_scale * jax.random.normal(keys[2], shape)
    masks = bernoulli_masks(keys[3], neurons, density)
    tx = sj.static_transform(
        optax.chain(optax.normalize_by_update_norm(), optax.sgd(config.learning_rate)),
        masks=masks,
        prunable=lambda path, leaf: True,
    )
    loss = lambda neurons, _: loss_of(neurons, train, config)
    start = fit.State(*sj.init_sparse(tx, neurons))
    state, _ = fit.descend(loss, tx, start, None, length=config.steps)
    # No other class can learn its signal.
    reached = jnp.any(masks & (signals(config)[:, None, :] != 0), axis=(1, 2))
    counts = {"active": sj.count_active(masks), "reached": jnp.mean(reached)}
    return counts | measure(state.params, train, test, config)


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each noise: one program trains all densities and seeds."""
    train_all = jax.jit(jax.vmap(partial(train_one, config), in_axes=(None, 0, 0)))
    runs = list(itertools.product(config.densities, config.seeds))

    def of_noise(noise_std: float) -> list[Record]:
        densities, seeds = zip(*runs)
        kept = np.asarray(densities, np.float32)
        measured = train_all(np.float32(noise_std), kept, np.asarray(seeds, np.int32))
        frame = pd.DataFrame(runs, columns=["density", "seed"])
        frame.insert(1, "noise_std", noise_std)
        return frame.assign(**jax.device_get(measured)).to_dict("records")

    return {f"noise_{std:g}": partial(of_noise, std) for std in config.noise_stds}


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes a table for each noise."""
    texts = [
        "Means over seeds ± half of the 95 % confidence interval (Student's t); the "
        "training loss is the largest of the seeds'. A class is reached if an active "
        "weight of its neurons sees its signal."
    ]
    for noise_std, group in frame.groupby("noise_std", sort=False):
        by, text = ["density"], results.interval_text
        reached, accuracy = (
            results.estimates(group, name, by) for name in ("reached", "test_accuracy")
        )
        alignments = [
            results.estimates(group, name, by, scale=1) for name in ("signal", "noise")
        ]
        gain = results.gains(group, "test_accuracy", by, to={"density": 1.0})
        loss = group.groupby("density")["train_loss"].max()
        rows = [["Kept", "Classes reached (%)", "Training loss", "Test accuracy (%)"]]
        rows[0] += ["Minus dense", "<w, signal>", "<w, noise>"]
        for density in reached.index:
            rows.append(
                [
                    results.percent(density),
                    f"{reached[density].mean:.0f}",
                    f"{loss[density]:.1e}",
                    text(accuracy[density]),
                    text(gain[density], "+") if density in gain else "",
                    *(text(alignment[density]) for alignment in alignments),
                ]
            )
        heading = f"## Noise of deviation {noise_std:g}"
        texts += [heading, results.markdown_table(rows)]
    return "\n\n".join(texts)


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws loss, accuracy and alignment against the share of the weights kept."""
    looks = [(BLUE, "o"), (ORANGE, "s"), (PINK, "^"), (GREEN, "D"), (RED, "v")]
    groups = list(frame.groupby("noise_std", sort=False))
    with plots.figure(path, 10.5, 3.8) as drawn:
        loss, accuracy, alignment = drawn.subplots(1, 3, sharex=True)
        for (noise_std, group), look in zip(groups, itertools.cycle(looks)):
            style = plots.LineStyle(f"noise {noise_std:g}", *look)
            largest = group.groupby("density")["train_loss"].max()
            lines = {"color": style.color, "marker": style.marker, "label": style.label}
            loss.plot(largest.index, largest.clip(lower=_LEAST_LOSS), **lines)
            _draw(accuracy, group, "test_accuracy", style, "-", scale=100)
            _draw(alignment, group, "signal", style, "-")
            _draw(alignment, group, "noise", style, "--")
        _draw_chance(accuracy, groups[0][1], config.classes)
        loss.set_yscale("log")
        loss.set_title("Training loss (largest)", fontsize=10)
        accuracy.set_title("Test accuracy (%)", fontsize=10)
        alignment.set_title("Alignment of weights", fontsize=10)
        alignment.legend(
            [Line2D([], [], color="0.4", linestyle=style) for style in ("-", "--")],
            ["with the signal", "with the noise"],
            loc="upper left",
        )
        for axes in (loss, accuracy, alignment):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda p, _: f"{100 * p:g}"))
            axes.set_xlabel("Weights kept at random (%)")
            axes.grid(axis="y", color="0.93")
            axes.set_axisbelow(True)
        loss.invert_xaxis()  # and those that share it
        handles = loss.get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=len(groups))


def _draw(
    axes: Axes,
    group: pd.DataFrame,
    value: str,
    style: plots.LineStyle,
    line: str,
    scale: float = 1,
) -> None:
    values = results.estimates(group, value, ["density"], scale=scale)
    options = {"linestyle": line, "markersize": 5, "elinewidth": 1}
    plots.draw_line(axes, list(values.index), list(values), style, **options)


def _draw_chance(axes: Axes, group: pd.DataFrame, classes: int) -> None:
    """Draws what comes of learning the classes that are reached, guessing others."""
    reached, chance = group.groupby("density")["reached"].mean(), 100 / classes
    guess = 100 * reached + (1 - reached) * chance
    axes.plot(guess.index, guess, color="0.6", linestyle=":", zorder=0)
    axes.axhline(chance, color="0.85", linewidth=0.8, zorder=0)
    axes.text(1, chance, "chance", color="0.5", va="bottom", fontsize=9)


STUDY = Study(
    "generalization",
    "Pruning before training and generalization",
    conditions,
    parts,
    report,
    {"by_density": plot},
)

if __name__ == "__main__":
    main(STUDY)
