"""Finds lottery tickets by rounds of pruning, in every form, and sets controls beside.

    python -m experiments.lottery --config=experiments/configs/lottery_digits.py \
        --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on after
the last round that an earlier one has finished.
"""

from experiments.command_line import run_study
from experiments.lottery_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
