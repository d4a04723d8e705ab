"""Pruning before and during training on scikit-learn's digits, at 80 to 99.5 %.

    python -m experiments.digits \
        --config=experiments/configs/digits_before_during_after.py --workdir=DIR

A method that prunes before training finds its masks at the first weights of each seed,
on all batches of the first epoch, 896 images; SynFlow, Iter-SNIP and FORCE in 20
rounds. Then it trains as "static". What pruning after training gives, with another
recipe, is in `results/lottery/README.md`.

Time: 286 s on two CPU cores that other work shared.

Result, test accuracy in %, mean ± standard deviation over five seeds (JAX 0.10.2 on a
CPU); the dense network has 98.0 ± 0.3, `docs/initialization.md` has more:

                    95 %          98 %          99 %         99.5 %
    Static       91.7 ± 1.7   49.0 ± 11.2   10.1 ± 0.2    10.2 ± 0.1
    SNIP         93.2 ± 3.1   71.3 ± 25.4   44.3 ± 17.8   20.9 ± 15.3
    GraSP        84.9 ± 5.3   62.7 ± 7.9    36.0 ± 5.0    15.4 ± 10.0
    SynFlow      94.9 ± 1.1   88.3 ± 1.5    63.3 ± 8.7    45.5 ± 22.3
    Iter-SNIP    94.9 ± 1.4   66.0 ± 14.6   51.6 ± 11.4   27.7 ± 9.9
    FORCE        95.9 ± 1.3   76.4 ± 10.7   60.0 ± 16.6   30.9 ± 18.1
    GMP          96.9 ± 0.6   96.0 ± 0.8    91.9 ± 1.0    76.8 ± 5.1
    GraNet       96.9 ± 0.8   94.0 ± 1.1    90.4 ± 2.3    73.1 ± 7.2
    RigL         95.3 ± 0.3   88.8 ± 3.4    24.5 ± 32.1   10.2 ± 0.1

No layer was left empty. At 99.5 % SNIP stayed below 15 % with three of five seeds,
SynFlow, Iter-SNIP and FORCE with one.
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
        "drive",
        "gmp",
        "granet",
        "rigl",
        "one_shot",
        "fine_tuning",
        "rate_rewinding",
        "lottery",
    )
    config.compared_with = ("snip", "gmp")
    config.sparsities = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    # A quarter of the epochs of `digits.py`, so that 275 runs take minutes, with its
    # learning rate; topology updates at half the interval, once an epoch.
    config.epochs = 20
    config.update_interval_steps = 14
    return config
