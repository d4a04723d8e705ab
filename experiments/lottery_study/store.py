"""What a study has finished, on disk: it goes on from there when it is run again.

config.json                 what is studied; another study is refused
states/FORM_N.msgpack       networks at the end of round N; of dense ones, after epoch N
parts/FORM_N.json           what came of the round; it is there when the round is done

A round's state is written before its part, and the round after reads it from the disk
even in the same process. So a study that was killed gives the numbers of one that was
not, to the bit.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
from ml_collections import ConfigDict

from experiments.lottery_study.settings import Unit
from experiments.record.files import write_atomically, write_bytes_atomically
from experiments.record.study import claim_folder
from experiments.training.state import TrainState


class Record(NamedTuple):
    """What came of one network in one round.

    Attributes:
        form: The form of the ticket.
        round: The round of pruning, 0 for the dense runs.
        sparsity: The sparsity asked for; None between two of them.
        seed: The seed of the dense run.
        epochs: Epochs that the network was trained for in this round.
        accuracy: Test accuracy at their end, in [0, 1].
        active: Active weights.
        prunable: Prunable weights.
        empty_layers: Layers without an active weight.
    """

    form: str
    round: int
    sparsity: float | None
    seed: int
    epochs: int
    accuracy: float
    active: int
    prunable: int
    empty_layers: int


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
        self._states = workdir / "states"
        self._parts = workdir / "parts"
        claim_folder(workdir, config)
        for folder in (self._states, self._parts):
            folder.mkdir(exist_ok=True)

    def is_done(self, unit: Unit) -> bool:
        """Tells whether a round of a form is finished.

        Args:
            unit: The round.

        Returns:
            Whether it is.
        """
        return self._part_file(unit).exists()

    def finish(self, unit: Unit, records: Sequence[Record], seconds: float) -> None:
        """Writes down that a round is finished, and what came of it.

        Args:
            unit: The round.
            records: One a network.
            seconds: The wall time of the round.
        """
        part = {
            "columns": Record._fields,
            "wall_seconds": seconds,
            "rows": [list(record) for record in records],
        }
        write_atomically(self._part_file(unit), json.dumps(part) + "\n")

    def records(self, unit: Unit) -> list[Record]:
        """Reads what came of a finished round.

        Args:
            unit: The round.

        Returns:
            One record a network.
        """
        return [Record(*row) for row in self._part(unit)["rows"]]

    def seconds(self, unit: Unit) -> float:
        """Reads how long a finished round took.

        Args:
            unit: The round.

        Returns:
            Wall time in seconds.
        """
        return float(self._part(unit)["wall_seconds"])

    def save(self, form: str, number: int, states: TrainState) -> None:
        """Saves networks whole: weights, masks, momentum, the step.

        Args:
            form: Their form.
            number: The round they are at the end of; for dense ones the epoch.
            states: Networks on the first axis.
        """
        content = flax.serialization.to_bytes(jax.device_get(states))
        write_bytes_atomically(self._state_file(form, number), content)

    def load(self, form: str, number: int, like: TrainState) -> TrainState:
        """Reads networks.

        Args:
            form: Their form.
            number: As in `save`.
            like: Networks of the same structure.

        Returns:
            The networks, as NumPy arrays.
        """
        content = self._state_file(form, number).read_bytes()
        restored: TrainState = flax.serialization.from_bytes(like, content)
        return restored

    def forget(self, form: str, number: int) -> None:
        """Removes networks that nothing goes on from any more.

        Args:
            form: Their form.
            number: As in `save`.
        """
        self._state_file(form, number).unlink(missing_ok=True)

    def _state_file(self, form: str, number: int) -> Path:
        return self._states / f"{form}_{number}.msgpack"

    def _part_file(self, unit: Unit) -> Path:
        return self._parts / f"{unit.form}_{unit.round}.json"

    def _part(self, unit: Unit) -> dict[str, Any]:
        return dict(json.loads(self._part_file(unit).read_text()))
