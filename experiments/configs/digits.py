"""Placeholder."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields, each explained where it is set.
    """
    config = ConfigDict()

    # What is compared: names in `experiments.training.sparse`, final sparsities of
    # all but dense, and the seeds that each pair of the two is repeated with. A seed
    # decides first weights, first masks, order of examples and random growth.
    config.methods = ("dense", "static", "set", "rigl", "gmp", "granet", "granet_st")
    config.sparsities = (0.9, 0.95, 0.98)
    config.seeds = (0, 1, 2, 3, 4)

    # The data: one stratified split for all runs. The test part is looked at once, at
    # the end; the rest of both shares is trained on.
    config.split_seed = 0
    config.validation_share = 0.2
    config.test_share = 0.3

    # The optimizer, the same for all: SGD with Nesterov momentum, cosine learning rate
    # from this value to 0, and weight decay added to the gradient.
    config.epochs = 80
    config.batch_size = 64
    config.learning_rate = 0.1
    config.momentum = 0.9
    config.weight_decay = 2e-3

    # Steps between topology updates, for every method that has them: two epochs.
    config.update_interval_steps = 28
    # The part of the run after which GMP and GraNet are at their final sparsity. RigL
    # stops exchanging at 75 % of the run, SET and GraNet go on, as in their papers.
    config.pruning_share = 0.5
    # How sparsity is shared out over layers where masks are random: "erk", "er" or
    # "uniform". One for all, so that no method is favoured; SET's paper has "er".
    config.distribution = "erk"
    # The fraction of each layer that is exchanged, at first (RigL, GraNet) or always
    # (SET), as in the papers.
    config.prune_rate = ConfigDict(
        {"set": 0.3, "rigl": 0.3, "rigl_itop": 0.5, "granet": 0.5}
    )
    # Where sparse-to-sparse GraNet starts.
    config.granet_st_initial_sparsity = 0.5
    return config
