"""Pruning before training where SNIP leaves layers empty: a deep network on the digits.

    python -m experiments.reproduce --table=before_training_deep

The claim of FORCE's paper (arXiv 2006.09081): FORCE and Iterative SNIP train at 99 and
99.5 % where SNIP fails. The network of `digits.py` does not tell, as SNIP leaves none
of its layers empty. This one was chosen by SNIP's empty layers alone, counted at the
first weights, before FORCE or Iterative SNIP had been run on any network like it. Of
twelve perceptrons with layer norm, networks with an empty layer out of five seeds:

    hidden layers                                       weights    99 %   99.5 %
    8 of 128                                            124,160     0       0
    16 of 128                                           255,232     1       1
    24 of 128                                           386,304     3       5
    8, 16 and 24 of 256                       477,696-1,526,272     0       0
    1, 2 and 3 each of 64, 128 and 256           47,616-219,648     0       0
    1, 2 and 3 each of 64, 128, 256 and 512     181,248-877,568     0       0

The learning rate was chosen for the dense network, by validation accuracy with seeds 0
and 1: 0.002 gives 95.8 %, 0.005 96.4, 0.01 88.2, 0.03 14.2 (32 layers at 0.1: 10.0).
All else is as in `digits_before_during_after.py`, but for the 60 rounds of the paper.

Result: mean test accuracy in % ± half of the 95 % confidence interval, and in brackets
the networks with an empty layer: the claim is not shown, as nothing trains.

                        99 %              99.5 %
    Dense  94.4 ± 0.4
    Static           10.2 ± 0.0 (0)    10.2 ± 0.1 (0)
    SNIP             10.2 ± 0.0 (3)    10.2 ± 0.0 (5)
    Iter-SNIP        12.0 ± 5.0 (0)    10.2 ± 0.0 (2)
    FORCE            10.2 ± 0.0 (3)    10.2 ± 0.0 (5)

Static masks (ERK) have no empty layer and stay at chance too: 25 layers without
shortcuts do not train at these sparsities.
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """Returns the fields; those not set here are explained in `digits.py`."""
    config = digits.get_config()
    config.model = "digits_mlp"
    config.model_options.widths = (128,) * 24
    config.methods = ("dense", "static", "snip", "iter_snip", "force")
    config.compared_with = ("snip",)
    config.sparsities = (0.99, 0.995)
    config.epochs = 20
    config.learning_rate = 0.005
    config.update_interval_steps = 14
    config.initialization_rounds = 60
    return config
