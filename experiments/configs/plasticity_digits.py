"""Pruning plasticity on scikit-learn's digits: five dense runs, pruned at four epochs.

    python -m experiments.plasticity --config=experiments/configs/plasticity_digits.py \
        --workdir=DIR

After a colon behind the file, `sparse`: from networks trained sparse, as in the paper's
supplement, under the schedule alone, to the end of training. That was not run.

The question of GraNet's paper (Liu et al., arXiv 2106.10404): how well does a network
recover when it is pruned during training, at which learning rate, and what does
regenerating connections add? `docs/plasticity.md` says what is measured. No paper has
numbers for this network.

Time: 332 s, in two parts, on two CPU cores that other work shared.

Result, what regenerating adds to plasticity: points of test accuracy, over all epochs
of pruning and learning rates, paired by seed, with the 95 % confidence interval over
five seeds (JAX 0.10.2 on a CPU):

    as many as were pruned    20 %          50 %          90 %           98 %
    weights by layer       -0.0 ± 0.1    -0.1 ± 0.6    +4.1 ± 3.3   +41.0 ± 10.2
    filters by layer       +0.2 ± 0.3    -0.1 ± 0.4    +3.9 ± 4.0   +24.6 ± 11.2
    weights globally       -0.0 ± 0.1    -0.1 ± 0.1    -0.4 ± 1.1   +20.0 ± 8.7
    filters globally       +0.0 ± 0.8    +0.4 ± 3.0   +50.1 ± 9.7   +40.4 ± 12.0

    at equal density          20 %          50 %          90 %           98 %
    weights by layer       -0.3 ± 0.2    -0.3 ± 0.5    -1.8 ± 5.6   -10.7 ± 7.2
    filters by layer       -0.7 ± 0.7    -4.7 ± 5.5    +0.7 ± 1.6    +0.0 ± 0.0
    weights globally       -0.8 ± 1.6    -0.4 ± 0.3    -1.3 ± 1.1    -9.6 ± 8.3
    filters globally       -1.2 ± 2.7    -0.4 ± 1.5    +0.0 ± 0.0    +0.0 ± 0.0

Given back as many connections, a network is as dense as before the prune. At equal
density regeneration does not help here. Learning rate and weight decay are those that
`digits.py` has, chosen for the dense network under a cosine; nothing was tuned here.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def training_config() -> ConfigDict:
    """Returns the part that says how networks are trained, for any study of these."""
    config = ConfigDict()

    # Data; see experiments.data. Accuracies are those of the test split, and
    # nothing is chosen by them. Held out examples are not used.
    config.dataset = "digits"
    config.data_dir = placeholder(str)
    config.validation_examples = 0
    config.split_seed = 0
    config.augment = "none"  # or "cifar": pad, crop and flip, by the two that follow
    config.pad = 4
    config.pad_mode = "reflect"

    # Network: "digits_cnn", "digits_mlp" or a name of experiments.models.
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

    # How it is run: images evaluated at once, and seeds trained side by side.
    config.eval_batch_size = 512
    config.seeds_at_once = 5
    return config


def get_config(start: str | None = None) -> ConfigDict:
    """Returns the configuration, each field explained where it is set."""
    if start not in (None, "sparse"):
        raise ValueError(f"after the colon must be nothing or sparse; got {start!r}.")
    config = training_config()

    # Networks are dense from the start at 0, else under ERK masks of that sparsity.
    config.initial_sparsities = (0.0,)
    # Each is pruned after these epochs, in every combination of what follows, and
    # trained on for so many epochs, under the schedule and at fixed learning rates.
    config.prune_at_epochs = (2, 14, 22, 30)
    config.continue_epochs = 3
    # Whether it is also trained on to the end of the run, for the gap that is left.
    config.continue_to_end = False
    config.fixed_learning_rates = (0.1, 0.01, 0.001)
    config.rates = (0.2, 0.5, 0.9, 0.98)
    config.scopes = ("layer", "global")
    config.units = ("weight", "filter")
    config.regenerations = ("none", "as_many", "exchange")
    # GraNet's first prune rate, for "exchange": it falls along GraNet's cosine over the
    # run, and is what it is at the epoch of pruning.
    config.exchange_rate = 0.5

    if start == "sparse":
        config.initial_sparsities = (0.0, 0.1, 0.5, 0.7, 0.8)
        config.continue_to_end = True
        config.fixed_learning_rates = ()
        config.rates = (0.5, 0.9, 0.98)
        config.scopes = ("layer",)
        config.units = ("weight",)
    return config
