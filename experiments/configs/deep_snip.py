"""SNIP at 90 % in deep ReLU networks, rescaled or not, residual or not; five seeds.

python -m experiments.deep_snip --config=experiments/configs/deep_snip.py \
        --workdir=DIR
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields, each explained where it is set."""
    config = ConfigDict()

    # Layers of `width` units between the first and the last.
    config.depths = (5, 10, 20, 30, 40)
    config.width = 64
    config.sparsity = 0.9
    config.seeds = (0, 1, 2, 3, 4)

    # The data: one stratified split for all runs, as in `digits.py`.
    config.split_seed = 0
    config.validation_share = 0.2
    config.test_share = 0.3

    # Adam, cosine learning rate from this value to 0. SGD with momentum, at 0.001 and
    # 0.003 and two other seeds, left pruned networks of 10 layers at chance.
    config.epochs = 40
    config.batch_size = 64
    config.learning_rate = 0.001
    return config
