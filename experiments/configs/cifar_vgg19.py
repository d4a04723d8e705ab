"""VGG-19 on CIFAR-10 or CIFAR-100, GraNet's recipe (arXiv 2106.10404, Table 2).

    python -m experiments.cifar \
        --config=experiments/configs/cifar_vgg19.py:method=granet,sparsity=0.95 \
        --workdir=runs/vgg19_granet_95

After the colon: method (one of `experiments.configs.common.METHODS`), sparsity (0.9,
0.95, 0.98 in the paper), classes (10 or 100).

160 epochs at batch 128: 56,160 steps on the 45,000 images left when 5,000 are held out
for validation. The paper's accuracy on CIFAR-10 is 93.85 dense and at 90 % 93.80 GraNet
(s_i=0), 93.59 GMP, 93.38 RigL, 92.46 SET. Cost and our own result: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import cifar_config


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration for "method=...,sparsity=...,classes=..."."""
    config = cifar_config(argument)
    config.model = "vgg19"
    return config
