"""Finds lottery tickets by rounds of pruning, in every form, with controls.

    python -m experiments.lottery --config=experiments/configs/lottery_digits.py \
        --workdir=DIR

With w_k the weights of the dense run after epoch k, E its last epoch, and w the weights
that the form had at the end of the round before, a round prunes |w| globally and trains

    rewinding to k             w_k under the new masks, from epoch k to E,
    learning-rate rewinding    w itself, from epoch 0 to E,
    fine-tuning                w itself, on from E at the last learning rate.

Rewinding takes momentum back with the weights. Without rounds:

    pruned once                w_E, pruned to the sparsity at once, and fine-tuned,
    new weights                those of another seed, under the masks of rewinding to 0,
    shuffled masks             w_0, those masks shuffled within each layer.

An epoch has the same order of examples in all forms. A round begins from what the round
before has saved, also in one process: a study that was killed goes on to the same bits.
"""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd
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
    number_conditions,
    numbers_conditions,
)

PyTree = Any

# Forms; rewinding has one for each epoch that is rewound to.
DENSE = "dense"
ORIGINAL = "rewind_0"
LEARNING_RATE = "learning_rate"
FINE_TUNING = "fine_tuning"
ONE_SHOT = "one_shot"
RANDOM_WEIGHTS = "random_weights"
SHUFFLED_MASKS = "shuffled_masks"
# These do not go on from round to round: they are measured at reported sparsities.
CONTROLS = (RANDOM_WEIGHTS, SHUFFLED_MASKS)
SINGLE = (*CONTROLS, ONE_SHOT)
_STYLES = {
    LEARNING_RATE: plots.LineStyle("Learning rate rewound", plots.BLUE, "^"),
    FINE_TUNING: plots.LineStyle("Fine-tuned in rounds", plots.SKY, "v"),
    RANDOM_WEIGHTS: plots.LineStyle("Control: new weights", plots.GRAY, "X"),
    SHUFFLED_MASKS: plots.LineStyle("Control: shuffled masks", plots.BLACK, "*"),
    ONE_SHOT: plots.LineStyle("Pruned once, fine-tuned", plots.GREEN, "P"),
}
# Forms that rewind take these in turn, in the order of their epochs.
_REWINDS = ((plots.RED, "o"), (plots.ORANGE, "s"), (plots.YELLOW, "D"))

_NEW_WEIGHTS = 2**30  # added to a seed, which no seed of a study reaches
# Sets the keys of shuffled masks apart from others that a run derives from its seed.
_STREAM = 0x5A0F


class Round(NamedTuple):
    """A round of a form, for all seeds at once: what is done whole or not at all.

    Attributes:
        form: One of the names above.
        number: Its round of pruning, from 1; 0 for the dense runs.
        active: The active weights of each network.
        sparsity: The sparsity asked for, if this round ends at one; 0 when dense.
    """

    form: str
    number: int
    active: int
    sparsity: float | None


def rewind_epoch(form: str) -> int | None:
    """Returns which epoch a form rewinds the weights to; None if it does not.

    Example:
        >>> rewind_epoch("rewind_6"), rewind_epoch("fine_tuning")
        (6, None)
    """
    found = form.startswith("rewind_")
    return int(form.removeprefix("rewind_")) if found else None


def all_rounds(config: ConfigDict, size: int) -> list[Round]:
    """Lists all rounds of a network of a size, each after what it goes on from."""
    counts = sj.lottery_counts(size, config.sparsities, config.fraction)
    reported = {int(sj.keep_count(s, size)): s for s in config.sparsities}
    rewinds = [f"rewind_{epoch}" for epoch in config.rewind_epochs]
    rounds = [Round(DENSE, 0, size, 0.0)]
    for number, count in enumerate(counts, start=1):
        forms = [*rewinds, LEARNING_RATE, FINE_TUNING]
        forms += SINGLE if count in reported else ()
        rounds += [Round(form, number, count, reported.get(count)) for form in forms]
    return rounds


def epochs_of(form: str, config: ConfigDict) -> range:
    """Returns the epochs of the schedule and of the order of examples of a round.

    Those after the end of the run are of fine-tuning, at the last learning rate.
    """
    if form in (FINE_TUNING, ONE_SHOT):
        return range(config.epochs, config.epochs + config.fine_tuning_epochs)
    return range(rewind_epoch(form) or 0, config.epochs)


def conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the configuration."""
    yield from training_conditions(config)
    yield (
        "seeds",
        max(config.seeds) < _NEW_WEIGHTS,
        "below 2^30, as those above are of the control with new weights",
    )
    yield from count_conditions(config, "fine_tuning_epochs")
    yield from number_conditions(config, fraction="(0, 1)")
    yield from numbers_conditions(
        config, rewind_epochs=f"[0, {config.epochs})", sparsities="(0, 1)"
    )
    yield (
        "rewind_epochs",
        0 in config.rewind_epochs,
        "epochs with 0 among them, which the others are compared with",
    )
    is_rising = list(config.sparsities) == sorted(config.sparsities)
    yield "sparsities", is_rising, "rising numbers in (0, 1)"


# Runs.


class _Bench:
    """What the parts of a study share.

    Networks are kept at the end of a round, dense ones after an epoch, until no round
    goes on from them.
    """

    def __init__(self, config: ConfigDict, folder: Path) -> None:
        """Loads the data; programs compile when first called."""
        self.config, self.runs, self._folder = config, Runs(config), folder
        self._draw = jax.jit(jax.vmap(_ticket, in_axes=(0, 0, 0, None)))

    def load(self, form: str, number: int) -> PyTree:
        """Loads networks."""
        return load_state(self._file(form, number), self.runs.like)

    def save(self, form: str, number: int, states: PyTree) -> None:
        """Saves networks whole: weights, masks, momentum, the step."""
        save_state(self._file(form, number), states)

    def _file(self, form: str, number: int) -> Path:
        return self._folder / f"{form}_{number}"

    def records(self, unit: Round) -> Iterator[Record]:
        """Draws the tickets of a round, trains them, and measures what comes of it."""
        config, form = self.config, unit.form
        states = self.start(unit)
        for epoch in epochs_of(form, config):
            if form == DENSE and epoch in config.rewind_epochs:
                self.save(DENSE, epoch, states)
            states = self.runs.train(states, epoch)
        accuracies, counts = self.runs.accuracy(states), count_weights(states)
        if form not in SINGLE:
            self.save(form, unit.number if unit.number else config.epochs, states)
            if unit.number > 1:  # the round before is needed until this one is done
                self._file(form, unit.number - 2).unlink(missing_ok=True)
        for i, seed in enumerate(config.seeds):
            yield {
                "form": form,
                "round": unit.number,
                "sparsity": unit.sparsity,
                "seed": seed,
                "epochs": len(epochs_of(form, config)),
                "accuracy": float(accuracies[i]),
                "active": int(counts["active"][i]),
                "prunable": prunable_weights(states),
                "empty_layers": int(counts["empty_layers"][i]),
            }

    def start(self, unit: Round) -> PyTree:
        """Makes the networks that a round trains."""
        form, runs = unit.form, self.runs
        if form == DENSE:
            return runs.create()
        if form in CONTROLS:
            masks = sj.get_masks(self.load(ORIGINAL, unit.number).opt_state)
            if form == RANDOM_WEIGHTS:
                start = runs.create(new_weights=_NEW_WEIGHTS)
            else:
                start = self.load(DENSE, 0)
                masks = _shuffled(runs.seeds, unit.number, masks)
            return runs.with_masks(start, masks, masks)
        if unit.number == 1 or form == ONE_SHOT:
            trained = self.load(DENSE, self.config.epochs)
        else:
            trained = self.load(form, unit.number - 1)
        epoch = rewind_epoch(form)
        start = trained if epoch is None else self.load(DENSE, epoch)
        old = sj.get_masks(trained.opt_state)
        params, masks = self._draw(trained.params, start.params, old, unit.active)
        return runs.with_masks(start._replace(params=params), masks, masks)


def _ticket(trained: PyTree, start: PyTree, masks: PyTree, count: jax.Array) -> Any:
    return sj.lottery_ticket(trained, start, masks, keep=count)


@jax.jit
@partial(jax.vmap, in_axes=(0, None, 0))
def _shuffled(seed: jax.Array, number: jax.Array, masks: PyTree) -> PyTree:
    """Shuffles the masks of a round's tickets, each by a key of its own."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    return sj.shuffle_masks(jax.random.fold_in(key, number), masks)


def parts(config: ConfigDict, workdir: Path) -> Mapping[str, Part]:
    """Returns a part for each round of each form."""
    bench = _Bench(config, workdir / "states")
    rounds = all_rounds(config, prunable_weights(bench.runs.like))
    return {
        f"{unit.form}_{unit.number}": partial(bench.records, unit) for unit in rounds
    }


# Tables.


def total_epochs(frame: pd.DataFrame) -> dict[tuple[str, float], int]:
    """Counts epochs of training until a form has a sparsity.

    Those of the dense run, of the rounds that led to the masks, and of the last round.
    """
    epochs = frame.groupby(["form", "round"], sort=False)["epochs"].first()
    reported = frame.dropna(subset="sparsity").groupby(["form", "round"], sort=False)

    def total(form: str, number: int) -> int:
        if form == DENSE:
            return int(epochs[DENSE, 0])
        found_by = ORIGINAL if form in CONTROLS else form
        before = 0 if form == ONE_SHOT else number - 1
        rounds = [epochs[found_by, i] for i in range(1, before + 1)]
        return int(epochs[DENSE, 0] + sum(rounds) + epochs[form, number])

    return {
        (form, sparsity): total(form, number)
        for (form, number), sparsity in reported["sparsity"].first().items()
    }


def styles(frame: pd.DataFrame) -> dict[str, plots.LineStyle]:
    """Names the sparse forms, and says how they are drawn, in their order."""
    looks = itertools.cycle(_REWINDS)
    forms = dict.fromkeys(frame.form[frame.form != DENSE])
    return {
        form: _STYLES.get(form)
        or plots.LineStyle(f"Rewound to epoch {rewind_epoch(form)}", *next(looks))
        for form in forms
    }


def _accuracies(frame: pd.DataFrame) -> tuple[pd.Series, Any]:
    """Estimates the accuracies at reported sparsities, and that of the dense network.

    Both in percent.
    """
    reported = frame.dropna(subset="sparsity")
    mean = results.estimates(reported, "accuracy", ["form", "sparsity"])
    return mean.drop(DENSE, level="form"), mean[DENSE, 0.0]


def report(frame: pd.DataFrame, config: ConfigDict) -> str:
    """Writes all tables."""
    sparse, dense = _accuracies(frame)
    by, labels = ["form", "sparsity"], {f: s.label for f, s in styles(frame).items()}
    table = partial(results.pivot, columns="sparsity", heading="Form", rows=labels)
    reported = frame[frame.sparsity > 0]
    gains = results.gains(reported, "accuracy", by, to={"form": ORIGINAL})
    epochs = pd.Series(total_epochs(frame)).rename_axis(by).drop(DENSE, level="form")
    texts = [
        f"Mean over {frame.seed.nunique()} seeds ± half of the 95 % confidence "
        "interval (Student's t). The dense network has "
        f"{results.interval_text(dense)} %.",
        "## Test accuracy in percent",
        table(sparse),
        "## Minus the ticket rewound to epoch 0, in points",
        "Paired by seed; bold where the interval does not hold 0.",
        table(gains, text=results.gain_text),
        "## Epochs of training until there",
        "Those of the dense run and of the rounds before, too.",
        table(epochs, text=str),
    ]
    empty = reported.groupby(by, sort=False)["empty_layers"].mean()
    if empty.any():
        rows = [["Form", "Sparsity", "Layers without an active weight, a mean"]]
        for (form, sparsity), mean in empty[empty > 0].items():
            rows.append([labels[form], results.percent(sparsity), f"{mean:g}"])
        texts += ["## Empty layers", results.markdown_table(rows)]
    return "\n\n".join(texts)


def plot(path: Path, frame: pd.DataFrame, config: ConfigDict) -> None:
    """Draws test accuracy against sparsity."""
    sparse, dense = _accuracies(frame)
    plots.plot_accuracy(path, sparse, styles(frame), dense=dense)


STUDY = Study(
    "lottery",
    "Lottery tickets",
    conditions,
    parts,
    report,
    {"accuracy": plot},
    OPERATIONAL,
)

if __name__ == "__main__":
    main(STUDY)
