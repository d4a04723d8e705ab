"""Pruning before and during training on scikit-learn's digits, at 80 to 99.5 %.

    python -m experiments.digits \
        --config=experiments/configs/digits_before_during_after.py --workdir=DIR

A method that prunes before training finds its masks at the first weights of each seed,
on all batches of the first epoch, 896 images; SynFlow, Iter-SNIP and FORCE in 20
rounds. Then it trains as "static". What pruning after training gives, with another
recipe, is in `results/lottery/README.md`.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields; those not set here are explained in `experiments/configs/digits.py`.
    """
    config = digits.get_config()
    config.methods = (
        "dense",
        "static",  # random masks, ERK
        "snip",
        "grasp",
        "synflow",
        "iter_snip",
        "force",
        "gmp",
        "granet",
        "rigl",
    )
    config.sparsities = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    # A quarter of the epochs of `digits.py`, so that 275 runs take minutes, with its
    # learning rate; topology updates at half the interval, once an epoch.
    config.epochs = 20
    config.update_interval_steps = 14
    return config
