"""VGG-19 at an eighth of its width, trained for 200 steps of CIFAR-10, on a CPU.

    python -m experiments.reproduce --table=cifar10_vgg19_narrow --data_dir=DIR_OR_NPZ

Seventeen layers, one after the other, of 313,624 prunable weights: at 99 % there are
3,136 of them left, at 99.5 % 1,568. Width and length are what a CPU can do; the number
of steps was chosen by the dense network alone.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar_vgg19


def get_config(argument: str | None = None) -> ConfigDict:
    """Gives the configuration.

    Args:
        argument: "method=...,sparsity=...".

    Returns:
        The configuration.
    """
    config = cifar_vgg19.get_config(argument)
    config.model_options = {"widths": (8, 16, 32, 64, 64)}
    config.total_steps = 200
    config.steps_per_call = 1  # convolutions in a loop are slow on a CPU
    config.validation_examples = 1000
    return config
