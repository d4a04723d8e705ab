"""Pruning before, during and after training on scikit-learn's digits, 80 to 99.5 %.

    python -m experiments.reproduce --table=before_during_after

A method that prunes before training finds its masks at the first weights of each seed,
on all batches of the first epoch, 896 images, or of another epoch in each of 20 rounds
of Iter-SNIP, FORCE and DRIVE; GraSP on ten images of each class. Then it trains as
"static". One that prunes after training goes on from the dense network, in whole runs
of the same recipe; see `experiments/digits.py`.

Time: about 15 minutes of CPU time, on two cores that other work shared.

Result, from before GraSP had its temperature and balanced batches, FORCE and Iter-SNIP
new batches in each round and DRIVE a dense phase of epochs: test accuracy in %, mean ±
standard deviation over five seeds (JAX 0.10.2 on a
CPU); the dense network has 98.0 ± 0.3, `docs/initialization.md` has more:

                         epochs         95 %        98 %         99 %        99.5 %
    Static               20          91.7 ± 1.7   49.0 ± 11.2  10.1 ± 0.2   10.2 ± 0.1
    SNIP                 20          93.2 ± 3.1   71.3 ± 25.4  44.3 ± 17.8  20.9 ± 15.3
    GraSP                20          84.9 ± 5.3   62.7 ± 7.9   36.0 ± 5.0   15.4 ± 10.0
    SynFlow              20          94.9 ± 1.1   88.3 ± 1.5   63.3 ± 8.7   45.5 ± 22.3
    Iter-SNIP            20          94.9 ± 1.4   66.0 ± 14.6  51.6 ± 11.4  27.7 ± 9.9
    FORCE                20          95.9 ± 1.3   76.4 ± 10.7  60.0 ± 16.6  30.9 ± 18.1
    DRIVE                20          95.5 ± 0.6   80.3 ± 9.0   56.4 ± 17.6  31.9 ± 14.7
    GMP                  20          96.9 ± 0.6   96.0 ± 0.8   91.9 ± 1.0   76.8 ± 5.1
    GraNet (s_i=0)       20          96.9 ± 0.8   94.0 ± 1.1   90.4 ± 2.3   73.1 ± 7.2
    RigL                 20          95.3 ± 0.3   88.8 ± 3.4   24.5 ± 32.1  10.2 ± 0.1
    One shot, fine-tuned 40          95.8 ± 0.7   88.6 ± 2.2   38.2 ± 13.2  10.1 ± 0.1
    Rounds, fine-tuned   160 to 480  97.3 ± 0.4   95.3 ± 1.1   91.8 ± 1.5   79.1 ± 5.2
    Rounds, rate rewound 160 to 480  94.0 ± 2.2   95.1 ± 2.3   91.1 ± 7.9   89.2 ± 6.8
    Lottery ticket       160 to 480  97.2 ± 0.4   94.4 ± 2.5   87.3 ± 6.5   46.8 ± 16.2

Layers were left empty by one shot at 99.5 % alone, one of the five in the mean. At
99.5 % SNIP stayed below 15 % with three of five seeds, SynFlow, Iter-SNIP, FORCE and
DRIVE with one.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """Returns the fields; those not set here are explained in `digits.py`."""
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
        "rigl_itop",
        "one_shot",
        "fine_tuning",
        "rate_rewinding",
        "lottery",
    )
    config.compared_with = ("snip", "gmp")
    config.sparsities = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
    # A quarter of the epochs of `digits.py`, so that 455 runs take minutes, with its
    # learning rate; topology updates at half the interval, once an epoch.
    config.epochs = 20
    config.update_interval_steps = 14
    return config
