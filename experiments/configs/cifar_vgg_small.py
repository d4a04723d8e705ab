"""A small VGG on CIFAR-10, which two CPU cores train in minutes.

    python -m experiments.cifar \
        --config=experiments/configs/cifar_vgg_small.py:method=granet,sparsity=0.95 \
        --workdir=DIR

Six 3 x 3 convolutions of 16, 32, 64, 64, 128 and 128 channels and a classifier, 282,800
prunable weights; 20 epochs, cosine from 0.1.
"""

from ml_collections import ConfigDict

from experiments.configs.common import cifar_config


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration; argument: "method=...,sparsity=..."."""
    config = cifar_config(argument)
    config.model = "vgg_small"
    config.epochs = 20
    config.schedule = "cosine"
    config.steps_per_call = 1  # convolutions in a loop are slow on a CPU
    return config
