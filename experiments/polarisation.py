"""Learns sub-networks by gates that a penalty makes agree, and sets controls beside.

    python -m experiments.polarisation \
        --config=experiments/configs/polarisation_digits.py --workdir=DIR

The config file says what is studied, and what comes out.
"""

from experiments.command_line import run_study
from experiments.polarisation_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
