"""Learns AutoS's criterion on one network, and prunes other networks by it.

    python -m experiments.auto_s --config=experiments/configs/auto_s.py --workdir=DIR

The config file says what is studied, and what comes out. The same command goes on after
the last part that an earlier one has finished.
"""

from experiments.auto_s_study.experiment import run_experiment
from experiments.command_line import run_study

if __name__ == "__main__":
    run_study(run_experiment)
