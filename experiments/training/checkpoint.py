"""Checkpoints of everything, written in the background, checked when read.

Orbax writes a checkpoint beside its place and moves it there when it is whole, so that
a kill at any moment leaves the older ones. Each holds a checksum of its state: one that
was damaged later is set aside with a warning, and the one before it is used.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from experiments.record.configuration import differences
from experiments.training.state import TrainState, checksum

PyTree = Any


class Best(NamedTuple):
    """The evaluation with the highest validation accuracy so far, at full sparsity.

    Attributes:
        step: Its step; -1 for none yet.
        validation_accuracy: In [0, 1].
        test_accuracy: Of the same weights; recorded, never used for a choice.
    """

    step: int = -1
    validation_accuracy: float = -1.0
    test_accuracy: float = -1.0


class Restored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        state: The training state, placed on devices.
        best: The best evaluation so far.
    """

    state: TrainState
    best: Best


# What may change between the parts of one run: how it is run, not what it computes.
OPERATIONAL = (
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "data_dir",
    "workers",
    "parallel",  # the same up to the order of sums
    "shard_state",
)


class Checkpointer:
    """Saves and restores the states of one run."""

    def __init__(
        self,
        directory: epath.Path,
        config: Mapping[str, Any],
        keep: int,
        to_saved: Callable[[TrainState], PyTree],
        from_saved: Callable[[PyTree], TrainState],
    ) -> None:
        """Opens the checkpoints of a run.

        Args:
            directory: Where they are, made if it is missing.
            config: The run's configuration; those of another are refused.
            keep: How many of the newest to keep.
            to_saved: Gives the form of the state that is saved: NumPy arrays, the same
                on every process, or arrays over all processes' devices.
            from_saved: Places a restored state of that form on devices.

        Raises:
            ValueError: If the checkpoints there are of another experiment; says what
                differs.
        """
        self._directory = directory
        self._config = config
        self._to_saved = to_saved
        self._from_saved = from_saved
        self._checksum = jax.jit(checksum)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self._check_experiment()

    def save(self, state: TrainState, best: Best) -> None:
        """Starts to save a state; it may be changed or donated right after.

        Args:
            state: The training state.
            best: The best evaluation so far.

        Raises:
            ValueError: If it could not be written, such as when the disk is full; older
                checkpoints stand.
        """
        saved = self._to_saved(state)
        notes = {
            "best": best._asdict(),
            "config": dict(self._config),
            "checksum": np.asarray(self._checksum(saved)).tolist(),
        }
        self._guard(
            lambda: self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved), notes=ocp.args.JsonSave(notes)
                ),
            )
        )

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            ValueError: If it could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def _guard(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (OSError, ValueError, RuntimeError) as error:
            last = self._manager.latest_step()
            stands = "none stands" if last is None else f"the one of step {last} stands"
            raise ValueError(
                f"a checkpoint could not be written to {self._directory}: {error}; "
                f"{stands}."
            ) from error

    def restore(self, abstract: PyTree) -> Restored | None:
        """Restores the newest checkpoint that is whole.

        Args:
            abstract: The structure, shapes and sharding of the form that is saved.

        Returns:
            What it holds; None if there is none.
        """
        for step in self._newest_first():
            try:
                saved, notes = self._read(step, abstract)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                logging.warning(
                    "Step %d's checkpoint is damaged (%s); the one before is used.",
                    step,
                    str(error).split("\n")[0][:200],
                )
                self._set_aside(step)
                continue
            return Restored(self._from_saved(saved), Best(**notes["best"]))
        return None

    def _newest_first(self) -> list[int]:
        return sorted(self._manager.all_steps(), reverse=True)

    def _notes(self, step: int) -> Mapping[str, Any]:
        return self._manager.restore(
            step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
        )["notes"]

    def _check_experiment(self) -> None:
        for step in self._newest_first():
            try:
                config = self._notes(step)["config"]
            except Exception:  # damaged: `restore` will say so
                continue
            found = differences(config, self._config, OPERATIONAL)
            if found:
                raise ValueError(
                    f"workdir holds another experiment's checkpoint, "
                    f"{self._directory}: {'; '.join(found)}; use another "
                    "workdir, or the same config."
                )
            return

    def _read(self, step: int, abstract: PyTree) -> tuple[PyTree, Mapping[str, Any]]:
        notes = self._notes(step)
        saved = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        )["state"]
        if np.asarray(self._checksum(saved)).tolist() != notes["checksum"]:
            raise OSError("its checksum does not match")
        return saved, notes

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
