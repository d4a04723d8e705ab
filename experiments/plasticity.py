"""Measures pruning plasticity along dense training runs, with and without regeneration.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on where
an earlier one stopped.
"""

from experiments.command_line import run_study
from experiments.plasticity_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
