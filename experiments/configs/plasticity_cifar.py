"""Pruning plasticity of ResNet-20 or VGG-19 on CIFAR-10 or CIFAR-100, for a GPU.

    python -m experiments.plasticity \
        --config=experiments/configs/plasticity_cifar.py:network=resnet20,classes=10 \
        --workdir=runs/plasticity_resnet20

After the colon: network (resnet20, vgg19), classes (10, 100).

GraNet's question (Liu et al., arXiv 2106.10404) with its recipe of 160 epochs: three
dense runs, pruned at four epochs and trained on for 30 more. All of it is 61,740 epochs
of training beside the 480 dense ones; parts of it are chosen by, for example,
`--config.units="('weight',)" --config.scopes="('layer',)"`, which leaves about a
quarter. The same command goes on where it stopped. The paper's numbers are in figures
alone. Cost and our own result: not run.
"""

from ml_collections import ConfigDict

from experiments.configs import plasticity_digits
from experiments.configs.common import parse
from sparsejax.checks import check_choice


def get_config(argument: str | None = None) -> ConfigDict:
    """Returns the configuration; `plasticity_digits.py` explains the fields."""
    values = parse(argument, network="resnet20", classes=10)
    check_choice("network", values["network"], ("resnet20", "vgg19"))
    if values["classes"] not in (10, 100):
        raise ValueError(f"classes must be 10 or 100; got {values['classes']}.")
    config = plasticity_digits.get_config()
    config.dataset = f"cifar{values['classes']}"
    config.validation_examples = 5000
    config.augment = "cifar"
    # As in the official code: mirrored edges for CIFAR-10, zeros for CIFAR-100.
    config.pad_mode = "reflect" if values["classes"] == 10 else "zero"
    config.model = values["network"]
    config.seeds = (18, 19, 20)
    config.epochs = 160
    config.batch_size = 128
    config.weight_decay = 5e-4
    config.prune_at_epochs = (20, 60, 100, 140)
    config.continue_epochs = 30
    # Side by side, their convolutions would be grouped ones.
    config.seeds_at_once = 1
    config.eval_batch_size = 1000
    return config
