"""Measures pruning plasticity along training runs, with and without regeneration.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

The question of GraNet's paper (Liu et al., arXiv 2106.10404). Networks are trained
dense, or under ERK masks that stay; checkpoints are pruned, regenerate or not, and are
trained on with the order of examples that the run itself has, so that the control that
is not pruned is the run itself where its learning rate is the schedule's.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd
from matplotlib.colors import SymLogNorm
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import plots, results
from experiments.dense_runs import (
    OPERATIONAL,
    Runs,
    count_weights,
    prunable_weights,
    training_conditions,
)
from experiments.files import load_state, save_state
from experiments.study import (
    Condition,
    Part,
    Record,
    Study,
    count_conditions,
    main,
    names_conditions,
    number_conditions,
    numbers_conditions,
)
from sparsejax.analysis.plasticity import UNITS
from sparsejax.checks import SCOPES
from sparsejax.trees import is_left_dense

PyTree = Any

# What follows the prune: nothing; as many units by layer as were pruned (the official
# code); or GraNet's exchange of survivors, at the density that the prune has left.
REGENERATIONS = {
    "none": plots.LineStyle("Pruned", plots.BLACK, "o"),
    "as_many": plots.LineStyle("As many regenerated", plots.ORANGE, "s"),
    "exchange": plots.LineStyle("Exchanged at equal density", plots.BLUE, "^"),
}
_UNIT_NAMES = {"weight": "weights", "filter": "filters"}
_SCOPE_NAMES = {"layer": "by layer", "global": "globally"}
# The learning rate of continuing that is no fixed one: what the run itself has there.
SCHEDULE = "schedule"
# Where GraNet's prune rate ends, in its official code.
_FINAL_EXCHANGE_RATE = 0.005


class Setting(NamedTuple):
    """How a checkpoint is pruned: what part of which units, and what follows."""

    rate: float
    scope: str
    unit: str
    regeneration: str


UNPRUNED = Setting(0.0, "none", "none", "none")  # the control, trained on as it is


def settings(config: ConfigDict) -> list[Setting]:
    """Lists what is done to each checkpoint: the control, and every combination."""
    combinations = itertools.product(
        config.rates, config.scopes, config.units, config.regenerations
    )
    return [UNPRUNED, *itertools.starmap(Setting, combinations)]


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    yield from training_conditions(config)
    yield from count_conditions(config, "continue_epochs")
    yield from number_conditions(config, exchange_rate="(0, 1)")
    yield from numbers_conditions(
        config,
        initial_sparsities="[0, 1)",
        prune_at_epochs=f"[0, {config.epochs}]",
        rates="(0, 1)",
    )
    yield from names_conditions(
        config, scopes=SCOPES, units=UNITS, regenerations=REGENERATIONS
    )
    yield (
        "regenerations",
        "none" in config.regenerations,
        'with "none" among them, which the others are compared with',
    )
    fixed = [f"{rate:g}" for rate in config.fixed_learning_rates]
    yield (
        "fixed_learning_rates",
        len(set(fixed)) == len(fixed)
        and all(0 < rate < np.inf for rate in config.fixed_learning_rates),
        "numbers above 0 that differ in six digits",
    )


# Runs.


def new_topology(
    params: PyTree,
    grads: PyTree,
    masks: PyTree,
    setting: Setting,
    exchange_rate: float,
) -> tuple[PyTree, PyTree]:
    """Prunes a network, and regenerates where the setting says so: (kept, masks).

    `kept` are the weights that go on. What has grown is in the masks alone, and starts
    from 0. Filters are those of convolutions: with unit "filter", the masks of dense
    layers stay. `exchange_rate` is the part of each layer that "exchange" exchanges.
    """
    if setting == UNPRUNED:
        return masks, masks
    unit = setting.unit
    is_pruned = lambda mask: unit == "weight" or mask.ndim == 4
    old = jax.tree.map(lambda m: m if is_pruned(m) else optax.MaskedNode(), masks)
    kept = sj.prune_once(params, old, setting.rate, scope=setting.scope, unit=unit)
    new = kept
    if setting.regeneration == "as_many":
        new = sj.regenerate(grads, kept, old, unit=unit)
    elif setting.regeneration == "exchange":
        pruned = kept
        kept = sj.prune_once(params, pruned, exchange_rate, unit=unit)
        new = sj.regenerate(grads, kept, pruned, unit=unit)

    def complete(some: PyTree) -> PyTree:
        pick = lambda mask, before: before if is_left_dense(mask) else mask
        return jax.tree.map(pick, some, masks, is_leaf=is_left_dense)

    return complete(kept), complete(new)


class _Bench:
    """What the parts of a study share; nothing is loaded before it is needed."""

    def __init__(self, config: ConfigDict, folder: Path) -> None:
        """Remembers where checkpoints are kept."""
        self.config, self._folder = config, folder
        self.checkpoint = functools.lru_cache(maxsize=1)(self._checkpoint)

    @functools.cached_property
    def runs(self) -> Runs:
        """The networks."""
        return Runs(self.config)

    def _checkpoint(self, sparsity: float, epoch: int) -> Any:
        """Returns states after an epoch, their accuracies, and dense gradients."""
        states = self._trained(sparsity, epoch)
        grads = self.runs.first_gradients(states, epoch)
        return states, self.runs.accuracy(states), grads

    def _trained(self, sparsity: float, epoch: int) -> PyTree:
        """Loads states, or trains them from an earlier checkpoint and saves them."""
        path = self._folder / f"from_{sparsity:g}_epoch_{epoch}"
        if path.exists():
            return load_state(path, self.runs.like)
        start = max((e for e in self.config.prune_at_epochs if e < epoch), default=None)
        if start is None:
            start, states = 0, self.runs.create(sparsity)
        else:
            states = self._trained(sparsity, start)
        for passed in range(start, epoch):
            states = self.runs.train(states, passed)
        save_state(path, states)
        return states

    def pruned(
        self, states: PyTree, grads: PyTree, epoch: int, setting: Setting
    ) -> PyTree:
        """Prunes the networks of a checkpoint."""
        rate = sj.cosine_prune_rate(
            self.config.exchange_rate,
            len(self.runs.learning_rates),
            _FINAL_EXCHANGE_RATE,
        )(epoch * self.runs.epoch_steps)
        prune = partial(new_topology, setting=setting, exchange_rate=float(rate))
        masks = sj.get_masks(states.opt_state)
        kept, masks = jax.vmap(prune)(states.params, grads, masks)
        return self.runs.with_masks(states, kept, masks)

    def stops(self, epoch: int) -> dict[str, int]:
        """Returns after how many epochs of continuing accuracies are measured."""
        stops = {"continued": self.config.continue_epochs}
        if self.config.continue_to_end:
            stops["at_end"] = self.config.epochs - epoch
        return stops

    def tracks(self, epoch: int) -> dict[str, np.ndarray]:
        """Returns the learning rates of continuing by their labels: [epochs, steps]."""
        epochs = max(self.stops(epoch).values())
        scheduled = np.stack([self.runs.rates(epoch + i) for i in range(epochs)])
        fixed = {
            f"{rate:g}": np.full_like(scheduled, rate)
            for rate in self.config.fixed_learning_rates
        }
        return {SCHEDULE: scheduled} | fixed

    def continued(
        self, states: PyTree, epoch: int, rates: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Trains networks on, and measures accuracies at the stops."""
        stops = self.stops(epoch)
        found: dict[str, np.ndarray] = {}
        for done in range(len(rates) + 1):
            if done in stops.values():
                accuracies = self.runs.accuracy(states)
                found |= {name: accuracies for name in stops if stops[name] == done}
            if done < len(rates):
                states = self.runs.train(states, epoch + done, rates[done])
        return found

    def records(
        self, sparsity: float, epoch: int, setting: Setting
    ) -> Iterator[Record]:
        """Prunes a checkpoint and trains on what comes of it, at all learning rates."""
        states, before, grads = self.checkpoint(sparsity, epoch)
        states = self.pruned(states, grads, epoch, setting)
        counts, pruned = count_weights(states), self.runs.accuracy(states)
        done: dict[bytes, dict[str, np.ndarray]] = {}  # by the learning rates' bits
        for label, rates in self.tracks(epoch).items():
            key = rates.tobytes()
            if key not in done:
                done[key] = self.continued(states, epoch, rates)
            for i, seed in enumerate(self.config.seeds):
                yield {
                    "initial_sparsity": sparsity,
                    "epoch": epoch,
                    "learning_rate": label,
                    "seed": seed,
                    **setting._asdict(),
                    "before": float(before[i]),
                    "pruned": float(pruned[i]),
                    **{name: float(values[i]) for name, values in done[key].items()},
                    "active": int(counts["active"][i]),
                    "prunable": prunable_weights(states),
                    "empty_layers": int(counts["empty_layers"][i]),
                }


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each way of pruning each checkpoint."""
    bench = _Bench(config, workdir / "checkpoints")
    cells = itertools.product(
        config.initial_sparsities, sorted(config.prune_at_epochs), settings(config)
    )
    return {
        f"from_{sparsity:g}_epoch_{epoch}_{'_'.join(map(str, setting))}": (
            partial(bench.records, sparsity, epoch, setting)
        )
        for sparsity, epoch, setting in cells
    }


# Tables.

_KIND = ["regeneration", "what"]
_PLACE = ["learning_rate", "epoch", "rate"]


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _what(unit: str, scope: str, sparsity: float) -> str:
    start = f", at {results.percent(sparsity)} from the start" if sparsity else ""
    if unit == "none":
        return f"nothing, the control{start}"
    return f"{_UNIT_NAMES[unit]} {_SCOPE_NAMES[scope]}{start}"


def with_changes(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds what tables and figures show, in points, in the order of tables.

    "change" is plasticity, "recovered" what came back after the prune, and "gap", where
    it was measured, the accuracy at the end of training minus the control's.
    """
    if "initial_sparsity" not in frame:  # records that are older than the field
        frame = frame.assign(initial_sparsity=0.0)
    start = zip(frame.unit, frame.scope, frame.initial_sparsity)
    frame = frame.assign(
        order=frame.learning_rate.map(_unique(frame.learning_rate).index),
        what=[_what(*key) for key in start],
        change=100 * frame.continued - 100 * frame.before,
        recovered=100 * frame.continued - 100 * frame.pruned,
    ).sort_values(["order", "epoch"], kind="stable")
    if "at_end" in frame:
        pair = ["initial_sparsity", "epoch", "learning_rate", "seed"]
        control = frame[frame.unit == "none"].set_index(pair)["at_end"]
        frame = frame.join(control.rename("control"), on=pair)
        frame["gap"] = 100 * frame.at_end - 100 * frame.control
    return frame


def effects(frame: pd.DataFrame, by: Sequence[str]) -> pd.Series:
    """Estimates what regeneration adds to plasticity: means of the rest, by seed."""
    mean = frame.groupby([*by, "seed"], sort=False, as_index=False)["change"].mean()
    none = {"regeneration": "none"}
    return results.gains(mean, "change", by, to=none, scale=1)


def comparisons_text(frame: pd.DataFrame) -> str:
    """Counts the cells in which regeneration helps or hurts, each once.

    Left out are those whose learning rates are another's, so that all networks are its
    networks, and those that differ for no seed.
    """
    tracks = frame.groupby(["epoch", "learning_rate"], sort=False)["continued"]
    repeats = tracks.agg(tuple).groupby("epoch").transform(pd.Series.duplicated)
    cell = ["initial_sparsity", "unit", "scope", "rate", "learning_rate", "epoch"]
    table = frame.set_index([*cell, "regeneration", "seed"])["continued"]
    table = 100 * table.unstack(["regeneration", "seed"], sort=False)
    lines = []
    for name in [name for name in REGENERATIONS if name in table and name != "none"]:
        each = (table[name] - table["none"]).dropna()  # the control has one form
        is_repeat = np.array([repeats[key[:-3:-1]] for key in each.index])
        is_zero = (each == 0).all(axis=1).to_numpy() & ~is_repeat
        chosen = each[~is_repeat & ~is_zero].to_numpy()
        found = [sj.mean_with_interval(row) for row in chosen]
        lines.append(
            f"- {REGENERATIONS[name].label}: of {len(each)} cells {is_repeat.sum()} "
            f"repeat another, as their fixed learning rate is the scheduled one, and "
            f"{is_zero.sum()} more differ for no seed. Of the other {len(found)} the "
            f"interval lies above 0 in {sum(e.mean > e.half_width for e in found)} and "
            f"below 0 in {sum(e.mean < -e.half_width for e in found)}; chance alone "
            f"would give about {0.025 * len(found):.0f} each."
        )
    return "\n".join(lines)


def _by_kind(title: str, values: pd.Series) -> Iterator[str]:
    """Writes a table for each kind of prune: learning rates and epochs by rates."""
    yield f"## {title}"
    for regeneration, what in _unique(values.index.droplevel(_PLACE)):
        yield f"### {REGENERATIONS[regeneration].label}: {what}"
        yield results.pivot(
            values.xs((regeneration, what), level=_KIND),
            "rate",
            heading=["Learning rate", "Pruned at epoch"],
            text=results.gain_text,
        )


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    frame = with_changes(frame)
    pruned = frame[frame.unit != "none"]
    texts = [
        "Points of test accuracy, mean over seeds ± half of the 95 % confidence "
        "interval (Student's t), in bold where the interval does not hold 0."
    ]
    mean = partial(results.estimates, by=[*_KIND, *_PLACE], scale=1)
    details = {
        "Plasticity: after continuing minus before pruning": mean(frame, "change"),
        "Recovered: after continuing minus straight after pruning": mean(
            pruned, "recovered"
        ),
    }
    if frame.regeneration.nunique() > 1:
        texts += _overall(frame)
        title = "What regeneration adds, by epoch and learning rate"
        details[title] = effects(pruned, [*_KIND, *_PLACE])
    if "gap" in frame:
        title = "At the end of training: minus the network that was not pruned"
        details[title] = mean(pruned, "gap")
    for title, values in details.items():
        texts += _by_kind(title, values)
    return "\n\n".join(texts)


def _overall(frame: pd.DataFrame) -> Iterator[str]:
    """Writes what regeneration adds, over all epochs and learning rates."""
    adds = effects(frame, [*_KIND, "rate"])
    names = {name: style.label for name, style in REGENERATIONS.items()}
    yield "## What regeneration adds to plasticity, over all epochs and learning rates"
    yield "Paired by seed, minus the same prune without regeneration."
    yield results.pivot(
        adds.sort_index(level="regeneration", sort_remaining=False),
        "rate",
        heading=["Regeneration", "Pruned"],
        text=results.gain_text,
        rows=lambda key: names.get(key, key),
    )
    yield "Cell by cell (epochs, learning rates, rates and what is pruned):"
    yield comparisons_text(frame)


# Figures.


def _from(sparsity: float) -> str:
    return f"\nfrom {results.percent(sparsity)} sparsity" if sparsity else ""


def _label_grid(
    grid: np.ndarray, rows: Iterable[str], columns: Iterable[str], x_label: str
) -> None:
    for axes, name in zip(grid[0], columns):
        axes.set_title(name, fontsize=10)
    for axes, name in zip(grid[:, 0], rows):
        axes.set_ylabel(name)
    for axes in grid[-1]:
        axes.set_xlabel(x_label)


def plot_heat_map(
    path: Path, frame: pd.DataFrame, config: ConfigDict, *, unit: str, scope: str
) -> None:
    """Draws plasticity over the epoch of pruning and the rate.

    A panel for each initial sparsity and learning rate (down) and regeneration.
    """
    frame = with_changes(frame)
    frame = frame[(frame.unit == unit) & (frame.scope == scope)]
    if frame.empty:
        return
    lines = _unique(zip(frame.initial_sparsity, frame.learning_rate))
    names = _unique(frame.regeneration)
    # Points below 1 and of tens are both told apart.
    scale = SymLogNorm(linthresh=1, vmin=-100, vmax=100)
    with plots.figure(path, 2.6 * len(names) + 0.8, 1.7 * len(lines) + 0.6) as drawn:
        grid = drawn.subplots(
            len(lines), len(names), sharex=True, sharey=True, squeeze=False
        )
        by = ["initial_sparsity", "learning_rate", "regeneration"]
        for (*line, name), panel in frame.groupby(by):
            axes = grid[lines.index(tuple(line)), names.index(name)]
            cells = panel.pivot_table("change", "rate", "epoch")
            image = axes.imshow(
                cells, norm=scale, cmap="RdBu", aspect="auto", origin="lower"
            )
            for (y, x), value in np.ndenumerate(cells):
                color = "white" if abs(value) > 15 else "black"
                text = {"ha": "center", "va": "center", "color": color, "size": 8}
                axes.text(x, y, f"{value:+.1f}", **text)
            axes.set_xticks(range(cells.shape[1]), map(str, cells.columns))
            axes.set_yticks(range(len(cells)), map(results.percent, cells.index))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        rows = [_rate_name(label) + _from(sparsity) for sparsity, label in lines]
        columns = [REGENERATIONS[name].label for name in names]
        _label_grid(grid, rows, columns, "Pruned at epoch")
        drawn.colorbar(
            image,
            ax=grid,
            label="Plasticity (points)",
            ticks=[-100, -10, -1, 0, 1, 10, 100],
            format="{x:g}",
        )
        title = f"{_UNIT_NAMES[unit].capitalize()} pruned {_SCOPE_NAMES[scope]}"
        drawn.suptitle(title, fontsize=10)


def _rate_name(label: str) -> str:
    return "As scheduled" if label == SCHEDULE else f"Learning rate {label}"


def plot_by_epoch(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws plasticity under the schedule against the epoch of pruning."""
    chosen = frame[frame.learning_rate == SCHEDULE]
    chosen = chosen.assign(place=chosen.epoch)
    _plot_lines(path, chosen, "Pruned at epoch", _rate_name(SCHEDULE))


def plot_by_learning_rate(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws plasticity against the fixed learning rate, pruned at the last epoch."""
    last = max(frame.epoch)
    chosen = frame[(frame.epoch == last) & (frame.learning_rate != SCHEDULE)]
    if chosen.learning_rate.nunique() > 1:
        chosen = chosen.assign(place=chosen.learning_rate.astype(float))
        _plot_lines(path, chosen, "Learning rate", f"Pruned at epoch {last}", "log")


def _plot_lines(
    path: Path, frame: pd.DataFrame, x_label: str, title: str, xscale: str = "linear"
) -> None:
    """Draws a panel for each unit and scope (down) and rate (across)."""
    frame = with_changes(frame).sort_values("place", kind="stable")
    pruned = frame[frame.unit != "none"]
    lines = _unique(zip(pruned.initial_sparsity, pruned.unit, pruned.scope))
    rates = sorted(_unique(pruned.rate))
    width, height = 2.3 * len(rates) + 0.6, 1.9 * len(lines) + 1.0
    with plots.figure(path, width, height) as drawn:
        grid = drawn.subplots(
            len(lines), len(rates), sharex=True, sharey="row", squeeze=False
        )
        by = ["initial_sparsity", "unit", "scope", "rate"]
        for key, panel in pruned.groupby(by):
            axes = grid[lines.index(key[:3]), rates.index(key[3])]
            control = frame[(frame.initial_sparsity == key[0]) & (frame.rate == 0)]
            mean = control.groupby("place")["change"].mean()
            axes.plot(mean.index, mean, color="0.55", ls="--", label="Not pruned")
            for name, of in panel.groupby("regeneration", sort=False):
                line = results.estimates(of, "change", ["place"], scale=1)
                plots.draw_line(axes, line.index, list(line), REGENERATIONS[name])
            axes.set_xscale(xscale)
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
            axes.grid(axis="y", color="0.93")
            axes.set_axisbelow(True)
        names = [f"{_UNIT_NAMES[u]}\n{_SCOPE_NAMES[s]}{_from(x)}" for x, u, s in lines]
        _label_grid(grid, names, map(results.percent, rates), x_label)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=len(rates))
        drawn.suptitle(f"Plasticity in points. {title}", fontsize=10)


_PLOTS: dict[str, Callable[[Path, pd.DataFrame, ConfigDict], None]] = {
    f"heat_map_{unit}_{scope}": partial(plot_heat_map, unit=unit, scope=scope)
    for unit, scope in itertools.product(UNITS, SCOPES)
}
_PLOTS |= {"by_epoch": plot_by_epoch, "by_learning_rate": plot_by_learning_rate}
STUDY = Study(
    "plasticity", "Pruning plasticity", conditions, parts, report, _PLOTS, OPERATIONAL
)

if __name__ == "__main__":
    main(STUDY)
