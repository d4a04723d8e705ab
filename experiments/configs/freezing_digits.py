"""Freezing against pruning on scikit-learn's digits, five seeds.

    python -m experiments.freezing --config=experiments/configs/freezing_digits.py \
        --workdir=DIR

TO BE MEASURED
"""

from ml_collections import ConfigDict

from experiments.configs import digits_before_during_after
from experiments.freezing_study.methods import METHODS

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
    """Gives the configuration.

    Returns:
        The fields; those not set here are explained in `experiments/configs/digits.py`.
    """
    comparison = digits_before_during_after.get_config()
    config = ConfigDict({field: comparison[field] for field in _SHARED})

    # Keys of `experiments.freezing_study.methods.METHODS`.
    config.methods = tuple(METHODS)
    # The share of the weights that is trained; by edge-popup, that is kept.
    config.densities = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    # Scores are not weights: edge-popup has a learning rate of its own.
    config.edge_popup_learning_rate = 0.1
    return config
