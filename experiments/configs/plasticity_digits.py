"""Pruning plasticity on scikit-learn's digits: five dense runs, pruned at four epochs.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

The question of GraNet's paper (Liu et al., arXiv 2106.10404): how well does a network
recover when it is pruned during training, at which learning rate, and what does
regenerating connections add? No paper has numbers for this network.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields, each explained where it is set.
    """
    config = ConfigDict()

    # Data; see experiments.input.datasets. Accuracies are those of the test split, and
    # nothing is chosen by them. Held out examples are not used.
    config.dataset = "digits"
    config.data_dir = placeholder(str)
    config.validation_examples = 0
    config.split_seed = 0
    config.augment = "none"  # or "cifar": pad, crop and flip
    config.pad = 4
    config.pad_mode = "reflect"

    # Network: "digits_cnn" or a name of experiments.models.
    config.model = "digits_cnn"
    config.model_options = ConfigDict(convert_dict=True)
    config.dtype = "float32"

    # The dense runs: one a seed, which decides first weights and order of examples.
    config.seeds = (0, 1, 2, 3, 4)
    config.epochs = 32
    config.batch_size = 64
    config.schedule = "step"
    config.learning_rate = 0.1
    config.warmup_epochs = 0
    config.drop_at = (0.5, 0.75)
    config.drop_factor = 0.1
    config.momentum = 0.9
    config.nesterov = True
    config.weight_decay = 2e-3
    config.decay_batch_norm = True
    config.label_smoothing = 0.0

    # Each is pruned after these epochs, in every combination of what follows, and
    # trained on for so many epochs, under the schedule and at fixed learning rates.
    config.prune_at_epochs = (2, 14, 22, 30)
    config.continue_epochs = 3
    config.fixed_learning_rates = (0.1, 0.01, 0.001)
    config.rates = (0.2, 0.5, 0.9, 0.98)
    config.scopes = ("layer", "global")
    config.units = ("weight", "filter")
    config.regenerations = ("none", "as_many", "exchange")
    # GraNet's first prune rate, for "exchange": it falls along GraNet's cosine over the
    # run, and is what it is at the epoch of pruning.
    config.exchange_rate = 0.5

    # How it is run: networks trained side by side, and images evaluated at once.
    config.replicas_at_once = 35
    config.eval_batch_size = 512
    return config
