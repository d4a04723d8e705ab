"""ResNet-50 on CIFAR-10 or CIFAR-100, GraNet's recipe (arXiv 2106.10404, Table 2).

    python -m experiments.cifar \
        --config=experiments/configs/cifar_resnet50.py:method=granet,sparsity=0.95 \
        --workdir=runs/cifar_resnet50_granet_95

After the colon: method (one of `experiments.configs.common.METHODS`), sparsity (0.9,
0.95, 0.98 in the paper), classes (10 or 100).

160 epochs at batch 128. The paper's accuracy on CIFAR-10 is 94.75 dense and at 95 %
94.44 GraNet (s_i=0), 94.38 GraNet (s_i=0.5), 94.52 GMP, 93.86 RigL. Cost and our own
result: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import cifar_config


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=...,classes=..."."""
    config = cifar_config(argument)
    config.model = "cifar_resnet50"
    return config
