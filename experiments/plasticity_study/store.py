"""What a study has finished, on disk: it goes on from there when it is run again.

config.json                      what is studied; another study is refused
checkpoints/seed_S_epoch_E       states of the dense runs
parts/epoch_E.json               what came of the checkpoints of an epoch so far
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
from ml_collections import ConfigDict

from experiments.plasticity_study.settings import Setting
from experiments.record.files import write_atomically, write_bytes_atomically
from experiments.record.study import claim_folder
from experiments.training.state import TrainState

# What may change between the parts of one study: how it is run, not what it computes.
OPERATIONAL = ("data_dir", "eval_batch_size", "replicas_at_once")


class Record(NamedTuple):
    """What came of one checkpoint in one setting.

    Attributes:
        epoch: The epoch of pruning.
        learning_rate: The label of the learning rates it was continued with.
        seed: The seed of the dense run.
        rate: `Setting.rate`.
        scope: `Setting.scope`.
        unit: `Setting.unit`.
        regeneration: `Setting.regeneration`.
        before: Test accuracy before pruning, in [0, 1].
        pruned: Test accuracy straight after it.
        continued: Test accuracy after it was trained on.
        active: Active weights of the pruned network.
        prunable: Prunable weights.
        empty_layers: Layers that were left without an active weight.
    """

    epoch: int
    learning_rate: str
    seed: int
    rate: float
    scope: str
    unit: str
    regeneration: str
    before: float
    pruned: float
    continued: float
    active: int
    prunable: int
    empty_layers: int

    @property
    def setting(self) -> Setting:
        """How it was pruned."""
        return Setting(self.rate, self.scope, self.unit, self.regeneration)

    @property
    def cell(self) -> tuple[str, int, Setting]:
        """What tells it from other records of its epoch."""
        return self.learning_rate, self.seed, self.setting


class Store:
    """The folder of one study."""

    def __init__(self, workdir: Path, config: ConfigDict) -> None:
        """Opens a folder, or begins one.

        Args:
            workdir: A folder that can be written to.
            config: The study's configuration.

        Raises:
            ValueError: If the folder holds another study; says what differs.
        """
        self._checkpoints = workdir / "checkpoints"
        self._parts = workdir / "parts"
        claim_folder(workdir, config, OPERATIONAL)
        for folder in (self._checkpoints, self._parts):
            folder.mkdir(exist_ok=True)

    def records(self, epoch: int) -> list[Record]:
        """Reads what has come of the checkpoints of an epoch.

        Args:
            epoch: The epoch of pruning.

        Returns:
            The records so far.
        """
        return [Record(*row) for row in self._part(epoch)["rows"]]

    def seconds(self, epoch: int) -> float:
        """Reads how long that took.

        Args:
            epoch: The epoch of pruning.

        Returns:
            Wall time in seconds, of all commands together.
        """
        return float(self._part(epoch)["wall_seconds"])

    def add(self, epoch: int, records: Sequence[Record], seconds: float) -> None:
        """Writes records down beside those that are there.

        Args:
            epoch: The epoch of pruning.
            records: The new ones.
            seconds: The wall time they took.
        """
        part = self._part(epoch)
        part["wall_seconds"] += seconds
        part["rows"] += [list(record) for record in records]
        write_atomically(self._part_file(epoch), json.dumps(part) + "\n")

    def _part(self, epoch: int) -> dict[str, Any]:
        file = self._part_file(epoch)
        if not file.exists():
            return {"columns": Record._fields, "wall_seconds": 0.0, "rows": []}
        return dict(json.loads(file.read_text()))

    def _part_file(self, epoch: int) -> Path:
        return self._parts / f"epoch_{epoch}.json"

    def _checkpoint_file(self, seed: int, epoch: int) -> Path:
        return self._checkpoints / f"seed_{seed}_epoch_{epoch}.msgpack"

    def has_checkpoint(self, seed: int, epoch: int) -> bool:
        """Tells whether a state is on disk.

        Args:
            seed: The seed of the dense run.
            epoch: Its epoch.

        Returns:
            Whether it is.
        """
        return self._checkpoint_file(seed, epoch).exists()

    def save_checkpoint(self, seed: int, epoch: int, state: TrainState) -> None:
        """Saves a state: weights, statistics, the optimizer's slots, the step.

        Args:
            seed: The seed of the dense run.
            epoch: Its epoch.
            state: The state of this one run.
        """
        content = flax.serialization.to_bytes(jax.device_get(state))
        write_bytes_atomically(self._checkpoint_file(seed, epoch), content)

    def load_checkpoint(self, seed: int, epoch: int, like: TrainState) -> TrainState:
        """Reads a state.

        Args:
            seed: The seed of the dense run.
            epoch: Its epoch.
            like: A state of the same structure.

        Returns:
            The state, as NumPy arrays.
        """
        content = self._checkpoint_file(seed, epoch).read_bytes()
        restored: TrainState = flax.serialization.from_bytes(like, content)
        return restored
