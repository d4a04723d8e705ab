"""Freezes weights on scikit-learn's digits, and prunes the same ones beside.

    python -m experiments.freezing --config=experiments/configs/freezing_digits.py \
        --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on after
the last method that an earlier one has finished.
"""

from experiments.command_line import run_study
from experiments.freezing_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
