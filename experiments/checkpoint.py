"""Checkpoints of everything, written in the background, checked when read.

Orbax writes a checkpoint beside its place and moves it there when it is whole, so that
a kill at any moment leaves the older ones. Each holds a checksum of its state: one that
was damaged later is set aside with a warning, and the one before it is used.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from experiments.files import differences
from experiments.step import TrainState, checksum

PyTree = Any

# What may change between the parts of one run: how it is run, not what it computes.
OPERATIONAL = (
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_best",
    "data_dir",
    "device_resident",  # both paths give the same batches
    "workers",
    "parallel",  # the same up to the order of sums, where batch norm is synchronized
    "shard_state",
    "profile_step",
    "profile_steps",
)

# TensorStore's codes of what a file's content makes impossible. Others, such as
# UNAVAILABLE and PERMISSION_DENIED, may be over in a moment.
_DECODING = (
    "DATA_LOSS",
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
)


class Best(NamedTuple):
    """The evaluation with the highest validation accuracy so far, at full sparsity."""

    step: int = -1  # its step; -1 for none yet
    validation_accuracy: float = -1.0  # in [0, 1]
    # Of the same weights; recorded, never used for a choice.
    test_accuracy: float = -1.0


class Restored(NamedTuple):
    """What a checkpoint holds: a placed state, the best evaluation, all notes."""

    state: TrainState
    best: Best
    notes: Mapping[str, Any]


class _DamageError(Exception):
    pass


def _is_damage(error: Exception) -> bool:
    """Whether an error says that a checkpoint's content is not what was written."""
    if isinstance(error, _DamageError | KeyError | UnicodeDecodeError):
        return True  # Orbax's KeyError: a part of it is missing
    if isinstance(error, json.JSONDecodeError | FileNotFoundError):
        return True
    return isinstance(error, ValueError) and str(error).startswith(_DECODING)


class Checkpointer:
    """Saves and restores the states of one run."""

    def __init__(
        self,
        directory: epath.Path,
        config: Mapping[str, Any] | None,
        keep: int | None,
        to_saved: Callable[[TrainState], PyTree],
        from_saved: Callable[[PyTree], TrainState],
    ) -> None:
        """Opens the `keep` newest checkpoints of a run; refuses those of another.

        `to_saved` makes the form of a state that is saved, `from_saved` places it.
        Without a config nothing can be saved, or is changed.
        """
        self._directory = directory
        self._config = config
        self._to_saved = to_saved
        self._from_saved = from_saved
        self._checksum = jax.jit(checksum)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=config is not None,
            read_only=config is None,
            # Of several processes, each run's two managers wait for their own.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=directory.name
            ),
        )
        self._manager = ocp.CheckpointManager(directory, options=options)
        if config is not None:
            self._check_experiment(config)

    def save(self, state: TrainState, **notes: Any) -> None:
        """Starts to save a state, which may be changed or donated right after."""
        step = int(state.step)
        if step in self._manager.all_steps():  # of a part that was killed: the same
            return
        saved = self._to_saved(state)
        notes |= {
            "config": self._config,
            "checksum": np.asarray(self._checksum(saved)).tolist(),
        }
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved), notes=ocp.args.JsonSave(notes)
                ),
            )
        )

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (OSError, ValueError, RuntimeError) as error:
            last = self._manager.latest_step()
            stands = "none stands" if last is None else f"the one of step {last} stands"
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"a checkpoint could not be written to {self._directory}: {reason}; "
                f"{stands}."
            ) from error

    def restore(self, abstract: PyTree) -> Restored | None:
        """Restores the newest checkpoint that is whole; None if there is none."""
        for step in self.newest_first():
            try:
                notes = self.notes(step)
                saved = self._read(step, abstract, notes)
            except Exception as error:  # Orbax has no class of its own for damage
                reason = " ".join(str(error).split())[:200]
                if not _is_damage(error):
                    raise ValueError(
                        f"step {step}'s checkpoint in {self._directory} cannot be read "
                        f"now: {reason}; nothing was changed: run the command again."
                    ) from error
                logging.warning(
                    "Step %d's checkpoint is damaged (%s); the one before is used.",
                    step,
                    reason,
                )
                if self._config is not None:
                    self._set_aside(step)
                continue
            return Restored(self._from_saved(saved), Best(**notes["best"]), notes)
        return None

    def newest_first(self) -> list[int]:
        """Returns the steps of all checkpoints."""
        return sorted(self._manager.all_steps(), reverse=True)

    def notes(self, step: int) -> Mapping[str, Any]:
        """Reads what stands beside the state of a checkpoint."""
        return self._manager.restore(
            step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        )["notes"]

    def _check_experiment(self, now: Mapping[str, Any]) -> None:
        for step in self.newest_first():
            try:
                config = self.notes(step)["config"]
            except Exception:  # unreadable: `restore` will say so
                continue
            found = differences(config, now, OPERATIONAL)
            if found:
                raise ValueError(
                    f"workdir holds another experiment's checkpoint, "
                    f"{self._directory}: {'; '.join(found)}; use another "
                    "workdir, or the same config."
                )
            return

    def _read(self, step: int, abstract: PyTree, notes: Mapping[str, Any]) -> PyTree:
        saved = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )["state"]
        if np.asarray(self._checksum(saved)).tolist() != notes["checksum"]:
            raise _DamageError("its checksum does not match")
        return saved

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            for number in range(1000):
                aside = self._directory / f"damaged-{step}-{number}"
                if not aside.exists():
                    (self._directory / str(step)).rename(aside)
                    break
        self._manager.reload()

    def close(self) -> None:
        """Waits for what is being written and closes."""
        self.wait()
        self._manager.close()


def saved_config(directory: epath.Path) -> Mapping[str, Any] | None:
    """Reads the configuration of the newest checkpoint; None if there is none."""
    if not directory.exists():
        return None
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        wanted = ocp.args.Composite(notes=ocp.args.JsonRestore())
        return manager.restore(step, args=wanted)["notes"]["config"]
