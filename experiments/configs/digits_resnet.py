"""A ResNet on scikit-learn's digits through the image training loop, in a minute.

For trying out on a laptop what `experiments.cifar` and `experiments.imagenet` do: the
record, the report, resuming, several processes. `experiments.digits` compares methods.

    python -m experiments.cifar \
        --config=experiments/configs/digits_resnet.py:method=granet,sparsity=0.9 \
        --workdir=runs/digits_resnet
"""

from ml_collections import ConfigDict

from experiments.configs.common import base_config, parse


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=..."."""
    config = base_config()
    config.update(parse(argument, method="granet", sparsity=0.9))
    config.dataset = "digits"
    config.validation_examples = 200
    config.augment = "none"
    config.model = "resnet20"
    config.model_options.depth = 8
    config.batch_size = 64
    config.epochs = 4
    config.learning_rate = 0.05
    config.update_interval_steps = 5
    config.log_every_steps = 10
    config.checkpoint_every_steps = 20
    return config
