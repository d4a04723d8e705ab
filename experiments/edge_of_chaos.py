"""Counts the layers that SNIP leaves empty, on and off the edge of chaos.

    python -m experiments.edge_of_chaos \
        --config=experiments/configs/edge_of_chaos.py --workdir=DIR

The config file says what is studied, and what comes out.
"""

from experiments.command_line import run_study
from experiments.edge_of_chaos_study.experiment import run_experiment

if __name__ == "__main__":
    run_study(run_experiment)
