"""Kept for tables that import it from here; see `experiments.train`."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments.train import Outcome as Outcome
from experiments.train import train_and_evaluate


def train_side_by_side(
    configs: Sequence[ConfigDict], workdirs: Sequence[str | Path]
) -> list[Outcome]:
    """Trains runs one after the other."""
    return [
        train_and_evaluate(config, folder) for config, folder in zip(configs, workdirs)
    ]
