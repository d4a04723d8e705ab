"""Consensus sub-networks by polarization on scikit-learn's digits, five seeds each.

    python -m experiments.polarization \
        --config=experiments/configs/polarization_digits.py --workdir=DIR

The method of arXiv 2302.10798, whose formulas were not found: see
`sparsejax/methods/consensus.py` for our reading.

Time: about 145 s of CPU time. Result: with the penalty of polarization, gates can be
removed without a loss down to a quarter of the units; without it, that costs 3.5 to
31.8 points. Not told apart from random units of the same number; see
`docs/polarization.md`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields, each explained where it is set."""
    config = ConfigDict()

    # The share of all units that is to be on.
    config.targets = (0.75, 0.5, 0.25, 0.1)
    config.seeds = (0, 1, 2, 3, 4)

    # The weights of the two penalties. That of polarization rises from 0 over the first
    # half of the run: at first units are chosen, then their gates are made to agree.
    config.polarization = 20.0
    config.activation = 3.0

    # The data: one stratified split for all runs, as in `digits.py`.
    config.split_seed = 0
    config.validation_share = 0.2
    config.test_share = 0.3

    # The optimizer, as in `digits.py`, for a quarter of the epochs: SGD with Nesterov
    # momentum, cosine learning rate from this value to 0, and weight decay added to the
    # gradient.
    config.epochs = 20
    config.batch_size = 64
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 2e-3
    return config
