"""The mains of experiments share one definition of their flags."""

import importlib

import pytest
from absl import flags

pytest.importorskip("grain", reason="of the experiments extra")


def test_all_mains_can_be_imported_together():
    """Absl refuses a flag that two modules define."""
    for name in (
        "digits",
        "generalization",
        "lottery",
        "plasticity",
        "polarization",
        "training.main",
    ):
        importlib.import_module(f"experiments.{name}")
    for flag in ("config", "workdir"):
        assert flags.FLAGS.find_module_defining_flag(flag) == "experiments.command_line"
