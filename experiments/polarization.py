"""Finds consensus sub-networks by polarization on scikit-learn's digits, and controls.

    python -m experiments.polarization \
        --config=experiments/configs/polarization_digits.py --workdir=DIR

The method is that of arXiv 2302.10798; `sparsejax/methods/consensus.py` has our reading
of it. For each target and seed, with E epochs for every network:

    polarized     gates by the input, both penalties; the units voted for stay
    no_penalty    the same without the penalty of polarization
    random        as many units a layer as the first has, drawn at random, from scratch
    magnitude     all units for the first half of the epochs, then as many as the first
                  has, those with the largest norm of incoming weights

and for each seed one network with all units, without gates.

A network of given units is trained with the outputs of the others times 0. This is the
small network of those units, to rounding, with first weights drawn at its fan-in; but
of one shape for all, so that one compiled program trains them.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from matplotlib.axes import Axes
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import digits_data as digits
from experiments import files, fit, plots, results, study
from experiments.models.digits_cnn import LAYERS, DigitsCNN
from experiments.models.gated_digits_cnn import GatedDigitsCNN, without_gates
from experiments.plots import BLUE, GRAY, GREEN, ORANGE, RED, SKY, LineStyle

PyTree = Any
Units = Mapping[str, Any]  # by layer, whether units are on: [units]
FORMS = {
    "polarized": LineStyle("Polarized gates", RED, "o"),
    "no_penalty": LineStyle("Gates without that penalty", BLUE, "s"),
    "random": LineStyle("Control: random units", GRAY, "X"),
    "magnitude": LineStyle("Control: largest units", GREEN, "D"),
}
GATED = {"polarized": ORANGE, "no_penalty": SKY}  # colors while gates are kept
BY = ["target", "form"]
MODEL = GatedDigitsCNN(digits.CLASSES)
# Makes the keys of random units differ from others that a run derives from its seed.
_STREAM = 0x6A7E


def conditions(config: ConfigDict) -> Iterator[study.Condition]:
    """Yields what must hold of the configuration."""
    yield (
        "targets",
        study.distinct(config.targets)
        and all(0 < target < 1 for target in config.targets),
        "different numbers in (0, 1)",
    )
    yield study.seeds_condition(config)
    yield "polarization", config.polarization > 0, "above 0; it is compared with 0"
    above = "(0, inf)"
    yield from study.number_conditions(config, polarization=above, activation=above)
    yield from digits.recipe_conditions(config)
    yield "epochs", config.epochs >= 2, "at least 2: one control chooses in the middle"


def _optimizer(config: ConfigDict, train: digits.Examples) -> Any:
    steps = config.epochs * (len(train.labels) // config.batch_size)
    return fit.sgd(config, steps)


def _order(
    config: ConfigDict, train: digits.Examples, seeds: Sequence[int], epochs: range
) -> np.ndarray:
    """Returns the examples of each step: int32[seeds, epochs, steps, batch]."""
    size, batch = len(train.labels), config.batch_size
    return np.stack([fit.batch_order(seeds, e, size, batch) for e in epochs], axis=1)


def _with_gates(params: PyTree, images: Any) -> tuple[jax.Array, Units]:
    """Computes the logits, and the gates [batch, units] by layer."""
    logits, state = MODEL.apply({"params": params}, images, mutable=["gates"])
    return logits, state["gates"]


def _undecided(gates: Units) -> jax.Array:
    """Computes the share of units that are on for some inputs and off for others."""
    every = jnp.concatenate(jax.tree.leaves(gates), axis=1) > 0
    return jnp.mean(jnp.any(every, axis=0) & ~jnp.all(every, axis=0))


def _first_params(seeds: Sequence[int]) -> PyTree:
    """Draws the first weights of networks with gates, stacked."""
    image = np.zeros((1, *digits.IMAGE_SHAPE), np.float32)
    first = [fit.first_params(MODEL, seed, image)["params"] for seed in seeds]
    return fit.stack(first)


def train_gated(
    config: ConfigDict,
    train: digits.Examples,
    seeds: Sequence[int],
    targets: Sequence[float],
    polarizations: Sequence[float],
) -> tuple[PyTree, Units, jax.Array]:
    """Trains networks with gates: (params, units voted for, undecided by epoch)."""
    tx = _optimizer(config, train)
    # From 0 to 1 over the first half of the epochs.
    ramp = np.minimum(np.arange(config.epochs) / (config.epochs // 2), 1.0)

    def one(
        params: PyTree, target: Any, polarization: Any, order: Any, data: Any
    ) -> Any:
        def loss(params: PyTree, item: Any) -> jax.Array:
            batch, strength = item
            logits, gates = _with_gates(params, data.images[batch])
            labels = data.labels[batch]
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return (
                jnp.mean(each)
                + strength * sj.polarization_penalty(gates)
                + config.activation * sj.activation_penalty(gates, target)
            )

        def epoch(state: fit.State, item: Any) -> tuple[fit.State, Any]:
            batches, share = item
            strengths = jnp.full(len(batches), share * polarization)
            state, _ = fit.descend(loss, tx, state, (batches, strengths))
            _, gates = _with_gates(state.params, data.images)
            return state, (sj.consensus(gates), _undecided(gates))

        start = fit.State(params, tx.init(params))
        items = order, jnp.asarray(ramp, jnp.float32)
        state, (votes, undecided) = jax.lax.scan(epoch, start, items)
        return state.params, jax.tree.map(lambda vote: vote[-1], votes), undecided

    order = _order(config, train, seeds, range(config.epochs))
    numbers = [np.asarray(x, np.float32) for x in (targets, polarizations)]
    run = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, 0, None)))
    trained: Any = run(_first_params(seeds), *numbers, order, train)
    return trained


@jax.jit
def measure_gated(
    params: PyTree, units: Units, test: digits.Examples
) -> tuple[jax.Array, jax.Array]:
    """Computes accuracies, and the shares of gates that are not what the vote says."""

    def one(params: PyTree, units: Units) -> tuple[jax.Array, jax.Array]:
        logits, gates = _with_gates(params, test.images)
        other = [jnp.mean((gates[n] > 0) != units[n], axis=0) for n in units]
        accuracy = jnp.mean(jnp.argmax(logits, -1) == test.labels)
        return accuracy, jnp.mean(jnp.concatenate(other))

    return jax.vmap(one)(params, units)


def init_static(
    config: ConfigDict, train: digits.Examples, seeds: Sequence[int], units: Units
) -> fit.State:
    """Draws the first weights of networks of given units, stacked."""
    tx = _optimizer(config, train)

    def one(params: PyTree, units: Units) -> fit.State:
        params = without_gates(params)
        for layer, reader in zip(LAYERS, (*LAYERS[1:], "output")):
            # What reads a layer has a smaller fan-in where some of it is off.
            scale = jnp.sqrt(units[layer].size / jnp.maximum(jnp.sum(units[layer]), 1))
            kernel = params[reader]["kernel"] * scale
            params = {**params, reader: {**params[reader], "kernel": kernel}}
        return fit.State(params, tx.init(params))

    networks: fit.State = jax.jit(jax.vmap(one))(_first_params(seeds), units)
    return networks


def train_static(
    config: ConfigDict,
    train: digits.Examples,
    seeds: Sequence[int],
    epochs: range,
    state: fit.State,
    units: Units,
) -> fit.State:
    """Trains networks of given units for some of the epochs of a run."""
    tx, of_batch = _optimizer(config, train), fit.cross_entropy(MODEL)

    def one(state: fit.State, units: Units, order: Any, data: Any) -> fit.State:
        loss = lambda params, batch: of_batch({"params": params, "units": units}, batch)
        steps = order.reshape(-1, order.shape[-1])
        return fit.descend(fit.at(loss, data), tx, state, steps)[0]

    order = _order(config, train, seeds, epochs)
    run = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))
    trained: fit.State = run(state, units, order, train)
    return trained


def random_units(seeds: Sequence[int], units: Units) -> Units:
    """Draws units at random, as many a layer as others have."""

    def draw(place: int, on: np.ndarray) -> np.ndarray:
        generators = [np.random.default_rng((_STREAM, place, seed)) for seed in seeds]
        return np.stack([g.permutation(row) for g, row in zip(generators, on)])

    return {layer: draw(i, np.asarray(units[layer])) for i, layer in enumerate(LAYERS)}


def largest_units(params: PyTree, units: Units) -> Units:
    """Chooses the units of largest norm of incoming weights, as many a layer."""

    def choose(kernel: np.ndarray, on: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(kernel.reshape(len(on), -1, on.shape[-1]), axis=1)
        ranks = np.argsort(np.argsort(-norms, axis=-1, kind="stable"), axis=-1)
        return ranks < on.sum(axis=-1, keepdims=True)

    return {
        layer: choose(np.asarray(params[layer]["kernel"]), np.asarray(on))
        for layer, on in units.items()
    }


@cache
def _size(widths: tuple[int, ...]) -> study.Record:
    """Returns the parameters of a static network, and its FLOPs of an image."""
    if not all(widths):  # it makes no sense
        return {"widths": widths, "parameters": None, "flops": None}
    model = DigitsCNN(digits.CLASSES, widths)
    image = jax.ShapeDtypeStruct((1, *digits.IMAGE_SHAPE), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    flops = sj.forward_flops(model.apply, shapes, image).total
    return {"widths": widths, "parameters": parameters, "flops": flops}


def _records(
    forms: Sequence[tuple[str, float, int]], units: Units, **measures: Any
) -> Iterator[study.Record]:
    on = [np.sum(units[layer], axis=1) for layer in LAYERS]
    columns = [np.asarray(values).tolist() for values in measures.values()]
    for form, widths, *values in zip(forms, np.stack(on, 1).tolist(), *columns):
        names = dict(zip(("form", "target", "seed"), form))
        yield {**names, **_size(tuple(widths)), **dict(zip(measures, values))}


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, study.Part]:
    """Returns the networks with gates, and the controls of the same sizes."""
    train, _, test = digits.load(config)
    cells = list(itertools.product(config.targets, config.seeds))
    saved = workdir / "states" / "units"

    def accuracy(params: PyTree, units: Units) -> jax.Array:
        return fit.accuracy(MODEL, {"params": params, "units": units}, *test)

    def gated() -> Iterator[study.Record]:
        forms = [(form, *cell) for form in GATED for cell in cells]
        names, targets, seeds = zip(*forms)
        strengths = [config.polarization * (name == "polarized") for name in names]
        params, units, undecided = train_gated(config, train, seeds, targets, strengths)
        files.save_state(saved, fit.take(units, range(len(cells))))
        with_gates, changed = measure_gated(params, units, test)
        yield from _records(
            forms,
            units,
            accuracy=accuracy(without_gates(params), units),
            gated_accuracy=with_gates,
            changed=changed,
            undecided=undecided,
        )

    def controls() -> Iterator[study.Record]:
        wanted = files.load_state(saved, dict.fromkeys(LAYERS))
        # Random units and all units go through the first half of the epochs together.
        # Then networks with all units are copied, each copy with its largest alone.
        own, cell_seeds = list(config.seeds), [seed for _, seed in cells]
        drawn = random_units(cell_seeds, wanted)
        full = {layer: np.ones_like(on[: len(own)]) for layer, on in drawn.items()}
        units, seeds = fit.concatenate([drawn, full]), cell_seeds + own
        state = init_static(config, train, seeds, units)
        epochs = range(config.epochs)
        first, second = epochs[: len(epochs) // 2], epochs[len(epochs) // 2 :]
        state = train_static(config, train, seeds, first, state, units)
        copied = [*range(len(cells), len(seeds))] * len(config.targets)
        largest = largest_units(fit.take(state.params, copied), wanted)
        units = fit.concatenate([units, largest])
        state = fit.take(state, [*range(len(seeds)), *copied])
        seeds += own * len(config.targets)
        state = train_static(config, train, seeds, second, state, units)
        forms = [("random", *cell) for cell in cells]
        forms += [("dense", 1.0, seed) for seed in own]
        forms += [("magnitude", *cell) for cell in cells]
        yield from _records(forms, units, accuracy=accuracy(state.params, units))

    return {"gated": gated, "controls": controls}


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    is_dense = frame["form"] == "dense"
    full, others = frame[is_dense].iloc[0], frame[~is_dense]
    accuracy = results.estimates(others, "accuracy", BY)
    gain = results.gains(others, "accuracy", BY, to={"form": "random"})
    gated = others[others["form"].isin(GATED)]
    with_gates = results.estimates(gated, "gated_accuracy", BY)
    gated = gated.assign(cost=gated["gated_accuracy"] - gated["accuracy"])
    cost = results.estimates(gated, "cost", BY)
    [dense] = results.estimates(frame[is_dense], "accuracy", ["form"])
    accuracy_rows = [
        ["Target", "Form", "Accuracy (%)", "Minus random units", "Empty layers"]
    ]
    size_rows = [["Target", "Form", "Units (%)", "By layer", "Parameters", "FLOPs"]]
    gate_rows = [["Target", "Form", "With gates (%)", "Without (%)", "Cost"]]
    gate_rows[0] += ["Undecided units (%)", "Changed gates (%)"]
    groups, targets = others.groupby(BY), sorted(config.targets, reverse=True)
    for key in itertools.product(targets, FORMS):
        name = [results.percent(key[0]), FORMS[key[1]].label]
        group = groups.get_group(key)
        static = results.interval_text(accuracy[key])
        empty = group["parameters"].isna().sum()
        gained = results.gain_text(gain[key]) if key in gain else ""
        accuracy_rows.append(
            [*name, static, gained, f"in {empty} networks" if empty else ""]
        )
        if key not in cost:  # the controls have the sizes of the first form
            continue
        widths = np.mean(group["widths"].tolist(), axis=0)
        left = [100 * (group[n] / full[n]).mean() for n in ("parameters", "flops")]
        size_rows.append(
            [
                *name,
                f"{100 * widths.sum() / sum(full['widths']):.1f}",
                " + ".join(f"{width:.1f}" for width in widths),
                *("" if math.isnan(part) else f"{part:.1f}" for part in left),
            ]
        )
        undecided = 100 * np.mean([each[-1] for each in group["undecided"]])
        kept = results.interval_text(with_gates[key])
        gate_rows.append(
            [
                *name,
                kept,
                static,
                results.gain_text(cost[key]),
                f"{undecided:.1f}",
                f"{100 * group['changed'].mean():.2f}",
            ]
        )
    layers = " + ".join(f"{width:g}" for width in full["widths"])
    return "\n\n".join(
        [
            f"Means over {dense.samples} seeds ± half of the 95 % confidence interval "
            "(Student's t); differences are paired by seed, bold where the interval "
            "does not hold 0. The network with all units has "
            f"{results.interval_text(dense)} %.",
            "## Static networks: test accuracy",
            "Controls have as many units a layer as the polarized network of the same "
            "seed and target. Random ones are trained from scratch; the largest are "
            "those of a network that has had all units for half of the epochs.",
            results.markdown_table(accuracy_rows),
            "## What is left",
            f"Of {layers} units; parameters and FLOPs in percent of those of all "
            "units.",
            results.markdown_table(size_rows),
            "## Gates by the input, and what removing them costs",
            "Undecided units are on for some training images and off for others; "
            "changed gates are those of test images that the vote overrules.",
            results.markdown_table(gate_rows),
        ]
    )


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws accuracies by target, gates kept and removed, and undecided units."""
    with plots.figure(path, 10.5, 4.2) as drawn:
        accuracy, undecided = drawn.subplots(1, 2, width_ratios=(3, 2))
        _draw_accuracies(accuracy, frame, config)
        _draw_undecided(undecided, frame)
        handles = accuracy.get_legend_handles_labels()
        drawn.legend(*handles, loc="outside lower center", ncols=3)


def _draw_accuracies(axes: Axes, frame: pd.DataFrame, config: ConfigDict) -> None:
    is_dense = frame["form"] == "dense"
    [dense] = results.estimates(frame[is_dense], "accuracy", ["form"])
    static = frame[~is_dense].assign(sparsity=1 - frame["target"])
    gated = static[static["form"].isin(GATED)]
    gated = gated.assign(accuracy=gated["gated_accuracy"], form=gated["form"] + "_kept")
    styles = {}
    for form, style in FORMS.items():
        if form in GATED:
            label = f"{style.label}, kept"
            styles[f"{form}_kept"] = LineStyle(label, GATED[form], style.marker)
            style = style._replace(label=f"{style.label}, removed")
        styles[form] = style
    lines = pd.concat([static, gated])
    values = results.estimates(lines, "accuracy", ["form", "sparsity"])
    plots.draw_accuracies(axes, values, styles, dense=dense, spread=0.07)
    targets = sorted(config.targets, reverse=True)
    axes.set_xticks(range(len(targets)), map(results.percent, targets))
    axes.set_xlabel("Units that are to be on")
    axes.set_title("Mean and 95 % confidence interval over seeds", fontsize=10)


def _draw_undecided(axes: Axes, frame: pd.DataFrame) -> None:
    gated = frame[frame["form"].isin(GATED)]
    targets = sorted(set(gated["target"]), reverse=True)
    for (form, target), group in gated.groupby(["form", "target"]):
        shares = 100 * np.mean(group["undecided"].tolist(), axis=0)
        # The fewer units, the paler.
        alpha = 1 - 0.75 * targets.index(target) / len(targets)
        epochs = range(1, len(shares) + 1)
        axes.plot(epochs, shares, color=FORMS[form].color, alpha=alpha)
    axes.set_ylim(0)
    axes.set_xlabel("Epoch (the paler, the fewer are to be on)")
    axes.grid(axis="y", color="0.93")
    axes.set_axisbelow(True)
    axes.set_title("Undecided units (%)", fontsize=10)


STUDY = study.Study(
    "polarization",
    "Consensus sub-networks on scikit-learn's digits",
    conditions,
    parts,
    report,
    {"accuracy": plot},
)

if __name__ == "__main__":
    study.main(STUDY)
