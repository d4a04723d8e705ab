"""VGG-19 at a quarter of its width, trained for 150 steps of CIFAR-10, on a CPU.

    python -m experiments.reproduce --table=cifar10_vgg19_narrow --data_dir=DIR_OR_NPZ

Seventeen layers, one after the other, of 1,252,784 prunable weights: at 99 % there are
12,528 of them left, at 99.5 % 6,264. Width and length are what a CPU can do. At an
eighth of the width, which was tried first, 99.5 % leaves 1,568 weights, and Iter-SNIP
empties layers as SNIP does.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar_vgg19


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=..."."""
    config = cifar_vgg19.get_config(argument)
    config.model_options = {"widths": (16, 32, 64, 128, 128)}
    config.total_steps = 150
    config.steps_per_call = 1  # convolutions in a loop are slow on a CPU
    config.validation_examples = 1000
    return config
