"""Trains two-layer networks pruned at random, and asks when they still generalise.

    python -m experiments.generalization \
        --config=experiments/configs/generalization.py --workdir=DIR

The config file says what is studied, and what comes out.
"""

from experiments.command_line import run_study
from experiments.generalization_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
