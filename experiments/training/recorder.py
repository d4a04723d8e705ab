"""What a run writes down of its training, gathered on the devices in between."""

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import sparsejax as sj
from experiments.record.metrics import MetricWriter
from experiments.training.measures import Measures, named
from experiments.training.run import Run
from experiments.training.state import TrainState, checksum
from sparsejax.trees import leaves_with_paths, mask_leaves

PyTree = Any


def check_same_masks(state: TrainState, step: int) -> None:
    """Refuses to go on when processes have come to different masks.

    Args:
        state: A placed state; all processes must call this.
        step: Its step, for the message.

    Raises:
        RuntimeError: If they differ.
    """
    if jax.process_count() == 1:
        return
    masks = sj.get_masks(state.opt_state)
    mine = np.asarray(jax.jit(checksum)(masks))
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    if not (everyone == everyone[:1]).all():
        raise RuntimeError(f"masks differ between processes at step {step}.")


def layer_table(run: Run, state: TrainState) -> list[dict[str, Any]]:
    """Lists the parameters and how many of their weights are active.

    Args:
        run: The run.
        state: A placed state; all processes must call this, as it may be spread over
            them.

    Returns:
        "path", "shape", "weights" and "active" of each; the last is None without mask.
    """
    active = mask_leaves(jax.device_get(run.layer_counts(state.opt_state)))
    return [
        {
            "path": path,
            "shape": list(leaf.shape),
            "weights": int(leaf.size),
            "active": int(active[path]) if path in active else None,
        }
        for path, leaf in leaves_with_paths(state.params)
    ]


class Clock:
    """Times training alone: not compiling, evaluating or saving."""

    def __init__(self) -> None:
        """Makes a clock that runs from the first `start` on."""
        self._since = math.nan
        self._steps, self._seconds = 0, 0.0

    def start(self) -> None:
        """Times from now on, after something else than training."""
        self._since = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Leaves out what was not training since the last `start` or `lap`.

        Args:
            seconds: How long it took.
        """
        self._since += seconds

    def lap(self, steps: int) -> float:
        """Takes the time of some steps that are through, and starts anew.

        Args:
            steps: How many since the last `start` or `lap`.

        Returns:
            Steps a second; NaN if it is not known.
        """
        seconds = time.monotonic() - self._since
        self.start()
        if not math.isfinite(seconds):
            return math.nan
        self._steps += steps
        self._seconds += seconds
        return steps / seconds

    def speed(self) -> float:
        """Gives the mean over all laps, in steps a second; NaN if it is not known."""
        return self._steps / self._seconds if self._seconds else math.nan


class Written(NamedTuple):
    """What a recorder has written down.

    Attributes:
        means: The loss and the accuracy, means over its steps.
        changed: Whether the topology was updated in one of them, or an update left out.
    """

    means: dict[str, float]
    changed: bool


class Recorder:
    """Gathers metrics of a run on the devices and writes them down now and then."""

    def __init__(self, run: Run, writer: MetricWriter, state: TrainState) -> None:
        """Starts with nothing gathered.

        Args:
            run: The run.
            writer: Where to write.
            state: The state that training starts from.
        """
        self._run, self._writer = run, writer
        self._waiting: list[PyTree] = []
        self._measures: dict[int, Measures] = {}
        self._masks = jax.eval_shape(lambda: sj.get_masks(state.opt_state))
        metrics = jax.device_get(optax.tree.get(state.opt_state, "metrics"))
        # Topology updates so far, made or left out, and layers known to be empty.
        self._events = int(metrics.updates + metrics.skipped)
        self._empty = int(metrics.empty)

    def add(self, step: int, metrics: PyTree, measured: bool) -> None:
        """Takes the metrics of a chunk, without waiting for it.

        Args:
            step: Where the chunk ends.
            metrics: Those of its steps, as the compiled step gives them.
            measured: Whether the topology was measured at that step.
        """
        measures = metrics.pop("measures", None)
        if measured:
            self._measures[step] = measures
        self._waiting.append(metrics)

    def write(self, step: int) -> Written:
        """Writes down what has come since the last time; waits for it.

        Args:
            step: The step of the last `add`, since the last of which there was one.

        Returns:
            What people watch, and whether the topology has changed.
        """
        chunks, measures = jax.device_get((self._waiting, self._measures))
        self._waiting, self._measures = [], {}
        columns = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
        first = step - len(columns["loss"]) + 1
        events = columns["updates"] + columns["skipped"]
        new = np.flatnonzero(np.diff(events, prepend=self._events))
        self._events = int(events[-1])
        for at, found in measures.items():
            # An update, made or left out, has metrics of its own.
            names = sj.Metrics._fields if at - first in new else ()
            line = {name: columns[name][at - first] for name in names}
            measured = self._named(found)
            self._writer.write(at, line | measured, "topology")
            self._warn_of_empty_layers(at, measured)
        means = {name: float(columns[name].mean()) for name in ("loss", "accuracy")}
        rate = float(self._run.schedule(step - 1))
        self._writer.write(step, means | {"learning_rate": rate}, "train")
        return Written(means, bool(new.size))

    def write_first_layers(self, state: TrainState) -> None:
        """Writes the density of each layer before the first step.

        Args:
            state: The state that training starts from.
        """
        densities = {
            f"density/{layer['path']}": layer["active"] / layer["weights"]
            for layer in layer_table(self._run, state)
            if layer["active"] is not None
        }
        self._writer.write(0, densities, "topology")

    def _warn_of_empty_layers(self, step: int, measured: Mapping[str, float]) -> None:
        """Warns where there are more layers without an active weight than before."""
        known, self._empty = self._empty, int(measured["empty_layers"])
        if self._empty > known and jax.process_index() == 0:
            paths = mask_leaves(self._masks)
            empty = [path for path in paths if not measured[f"density/{path}"]]
            warnings.warn(
                f"{len(empty)} of {len(paths)} layers have no active weight left at "
                f"step {step}: {', '.join(map(repr, empty))}; nothing passes through "
                "them.",
                sj.EmptyLayerWarning,
                stacklevel=3,
            )

    def _named(self, measures: Measures) -> dict[str, float]:
        return named(jax.tree.map(lambda x: x[0], measures), self._masks)
