"""What a run writes of its training, gathered on the devices in between."""

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.record import MetricWriter
from experiments.run import Run
from experiments.step import TrainState, checksum, named_measures
from sparsejax.trees import leaves_with_paths, mask_leaves

PyTree = Any


def check_same_masks(state: TrainState, step: int) -> None:
    """Raises RuntimeError when processes have come to different masks; all call it."""
    if jax.process_count() == 1:
        return
    masks = sj.get_masks(state.opt_state)
    mine = np.asarray(jax.jit(checksum)(masks))
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    if not (everyone == everyone[:1]).all():
        raise RuntimeError(f"masks differ between processes at step {step}.")


def layer_table(run: Run, state: TrainState) -> list[dict[str, Any]]:
    """Lists path, shape, weights and active weights (None without mask) of parameters.

    All processes must call it, as the state may be spread over them.
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
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def start(self) -> None:
        """Times from now on, after something else than training."""
        self._since, self._waited = time.monotonic(), 0.0

    def lap(self, steps: int) -> tuple[float, float]:
        """Times some steps that are through, and starts anew.

        Returns steps a second and the share of the time spent waiting for data; NaN if
        they are not known.
        """
        seconds, waited = time.monotonic() - self._since, self._waited
        self.start()
        if not math.isfinite(seconds):
            return math.nan, math.nan
        self._steps += steps
        self._seconds += seconds
        return steps / seconds, waited / seconds

    def speed(self) -> float:
        """Returns the mean over all laps, in steps a second; NaN if it is not known."""
        return self._steps / self._seconds if self._seconds else math.nan

    def waiting_for(self, chunks: Iterator[PyTree]) -> Iterator[PyTree]:
        """Yields what an iterator does, and times the waiting for it."""
        while True:
            start = time.monotonic()
            try:
                chunk = next(chunks)
            except StopIteration:
                return
            self._waited += time.monotonic() - start
            yield chunk

    def without_compiling(self, function: Any) -> Any:
        """Leaves a function's first call, which compiles, out of the time."""
        is_first = True

        def timed(state: TrainState, *rest: Any) -> Any:
            nonlocal is_first
            if not is_first:
                return function(state, *rest)
            is_first = False
            jax.block_until_ready(state)  # or steps would run while nothing counts
            start = time.monotonic()
            result = function(state, *rest)
            self._since += time.monotonic() - start
            return result

        return timed


class Trace:
    """Writes a profiler trace of some steps; what fails in it stops nothing."""

    def __init__(self, config: ConfigDict, record: Path) -> None:
        """Plans it, where the configuration has a `profile_step`."""
        self._first, self._steps = config.profile_step, config.profile_steps
        self._folder, self._until = record / "profile", math.inf

    def reach(self, step: int, state: TrainState) -> None:
        """Starts or stops where a step says so."""
        with self._watched():
            if self._first is not None and step >= self._first:
                jax.profiler.start_trace(str(self._folder))
                self._first, self._until = None, step + self._steps
            elif step >= self._until:
                jax.block_until_ready(state)
                self.close()

    def close(self) -> None:
        """Stops if it has started."""
        with self._watched():
            if self._until < math.inf:
                self._until = math.inf
                jax.profiler.stop_trace()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._first, self._until = None, math.inf
            logging.warning("There is no trace: %s.", error)


class Written(NamedTuple):
    """What a recorder has written."""

    means: dict[str, float]  # the loss and the accuracy, means over its steps
    # Whether the topology was updated in one of them, or an update skipped.
    changed: bool


_MEANS = ("loss", "accuracy")


class Recorder:
    """Gathers metrics of a run on the devices and writes them now and then."""

    def __init__(
        self,
        run: Run,
        writer: MetricWriter,
        state: TrainState,
        window: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts with what a stopped run had gathered since its last line."""
        self.writer = writer
        self._run = run
        self._waiting: list[PyTree] = []
        self._measures: dict[int, Any] = {}
        # float32 as on the device: JSON keeps every bit of it.
        self._window = {
            name: np.array((window or {}).get(name, ()), np.float32) for name in _MEANS
        }
        self._masks = jax.eval_shape(lambda: sj.get_masks(state.opt_state))
        metrics = jax.device_get(optax.tree.get(state.opt_state, "metrics"))
        # Topology updates so far, made or skipped, and layers known to be empty.
        self._events = int(metrics.updates + metrics.skipped)
        self._empty = int(metrics.empty)

    def add(self, step: int, metrics: PyTree, measured: bool) -> None:
        """Takes the metrics of a chunk that ends at a step, without waiting for it."""
        measures = metrics.pop("measures", None)
        if measured:
            self._measures[step] = measures
        self._waiting.append(metrics)

    def hold(self, step: int) -> dict[str, list[float]]:
        """Writes measures, and returns what the next line of kind "train" is made of.

        Waits for the steps up to the last `add`.
        """
        self._gather(step)
        self._check_finite(step, float(self._window["loss"].mean()))
        return {name: values.tolist() for name, values in self._window.items()}

    def write(self, step: int) -> Written:
        """Writes what has come since the last line; waits for it."""
        changed = self._gather(step)
        means = {name: float(values.mean()) for name, values in self._window.items()}
        self._window = {name: values[:0] for name, values in self._window.items()}
        rate = float(self._run.schedule(step - 1))
        self.writer.write(step, means | {"learning_rate": rate}, "train")
        self._check_finite(step, means["loss"])
        return Written(means, changed)

    def _check_finite(self, step: int, loss: float) -> None:
        if self._run.config.stop_on_nan and not math.isfinite(loss):
            raise ValueError(
                f"loss must be finite; got {loss} on average up to step {step}: lower "
                "learning_rate, or set clip_norm; earlier checkpoints stand."
            )

    def watch(self, step: int, lap: tuple[float, float]) -> None:
        """Writes the speed and the share of the time spent waiting for data."""
        if math.isfinite(lap[0]):
            speed = lap[0] * self._run.config.batch_size
            self.writer.watch(step, examples_per_second=speed, data_wait=lap[1])

    def write_first_layers(self, state: TrainState) -> None:
        """Writes the density of each layer before the first step."""
        densities = {
            f"density/{layer['path']}": layer["active"] / layer["weights"]
            for layer in layer_table(self._run, state)
            if layer["active"] is not None
        }
        self.writer.write(0, densities, "topology")

    def _gather(self, step: int) -> bool:
        """Brings metrics to the host, writes measures; whether the topology changed."""
        chunks, measures = jax.device_get((self._waiting, self._measures))
        self._waiting, self._measures = [], {}
        columns = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
        self._window = {
            name: np.concatenate([values, columns[name]])
            for name, values in self._window.items()
        }
        first = step - len(columns["loss"]) + 1
        events = columns["updates"] + columns["skipped"]
        new = np.flatnonzero(np.diff(events, prepend=self._events))
        self._events = int(events[-1])
        for at, found in measures.items():
            # An update, made or skipped, has metrics of its own.
            names = sj.Metrics._fields if at - first in new else ()
            line = {name: columns[name][at - first] for name in names}
            one = jax.tree.map(lambda x: x[0], found)
            measured = named_measures(one, self._masks)
            self.writer.write(at, line | measured, "topology")
            self._warn_of_empty_layers(at, measured)
        return bool(new.size)

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
