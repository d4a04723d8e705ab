"""Freezing against pruning on scikit-learn's digits, five seeds.

    python -m experiments.freezing --config=experiments/configs/freezing_digits.py \
        --workdir=DIR

The same masks are used to freeze and to prune, beside edge-popup and whole leaves. No
paper has numbers for this network.

Time: 1,646 s for 170 networks on two CPU cores that much other work shared; 275 of the
same kind once took 286 s there (`digits_before_during_after.py`).

Result, test accuracy in percent with half of the 95 % confidence interval over five
seeds (JAX 0.10.2 on a CPU); the dense network has 98.0 ± 0.3, and `docs/freezing.md`
has more:

                        10 %          5 %          2 %           1 %
    random, pruned   96.8 ± 1.7   91.7 ± 2.1   49.0 ± 13.9   10.1 ± 0.2
    random, frozen   96.8 ± 0.5   96.1 ± 0.8   92.4 ± 1.3    89.2 ± 1.5
    SNIP, pruned     97.3 ± 0.9   93.2 ± 3.8   71.3 ± 31.5   44.3 ± 22.1
    SNIP, frozen     97.5 ± 0.5   96.7 ± 1.1   96.2 ± 0.4    93.5 ± 1.3
    edge-popup       96.7 ± 0.7   92.2 ± 1.5   64.1 ± 15.9   13.7 ± 6.6
"""

from ml_collections import ConfigDict

from experiments.configs import digits_before_during_after
from experiments.freezing import METHODS

# What is as in the comparison of methods on the digits, where it is explained.
_SHARED = (
    "seeds",
    "split_seed",
    "validation_share",
    "test_share",
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "distribution",
)


def get_config() -> ConfigDict:
    """Returns the fields; those not set here are explained in `digits.py`."""
    comparison = digits_before_during_after.get_config()
    config = ConfigDict({field: comparison[field] for field in _SHARED})

    # Keys of `experiments.freezing.METHODS`.
    config.methods = tuple(METHODS)
    # The share of the weights that is trained; by edge-popup, that is kept.
    config.densities = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    # Edge-popup's scores are not weights: they can have another rate than these.
    config.edge_popup_learning_rate = 0.1
    return config
