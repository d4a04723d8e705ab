"""A configuration of a tiny network on few images, for tests of the trainer."""

import os

from ml_collections import ConfigDict

from experiments.configs import digits_resnet

EPOCH, LAST = 10, 40  # steps


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration; its data is what the environment says."""
    config = digits_resnet.get_config(argument)
    config.dataset = os.environ.get("TINY_DATASET", "digits")
    config.model = "vgg16"
    config.model_options = {"widths": (8,)}  # two convolutions and a classifier
    config.batch_size = 16
    config.epochs = LAST // EPOCH
    config.validation_examples = 40  # of 200
    config.update_interval_steps = 3
    config.log_every_steps = 4
    config.checkpoint_every_steps = 6
    return config
