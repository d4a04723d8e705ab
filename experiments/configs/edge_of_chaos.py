"""Layers left empty by SNIP, on and off the edge of chaos, at growing depth.

    python -m experiments.edge_of_chaos \
        --config=experiments/configs/edge_of_chaos.py --workdir=DIR

The claim of arXiv 2002.08797: on the edge no layer is pruned away. All sizes are ours.
Time: 32 s of a CPU core. Result: on the edge no layer of any network is left empty; off
it 10.7 ± 1.0 of 24 layers are and 17.2 ± 1.2 of 32; see `results/edge_of_chaos`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Gives the configuration.

    Returns:
        The fields, each explained where it is set.
    """
    config = ConfigDict()

    # Where networks start: the variances s_w^2 of weights times fan-in and s_b^2 of
    # biases. (2, 0) is the edge of chaos of ReLU networks.
    config.variances = ((2.0, 0.0), (1.0, 0.25))
    # Layers of `width` units, and the examples that SNIP sees, in one batch.
    config.depths = (4, 8, 12, 16, 20, 24, 32)
    config.width = 32
    config.examples = 16
    config.sparsity = 0.95

    config.seeds = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
    return config
