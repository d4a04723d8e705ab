"""Networks in Flax linen.

The first convolution of every network in `MODELS` is `stem`, its classifier `head`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from experiments.models.resnet import resnet, thin_resnet, wide_resnet
from experiments.models.vgg import VGG, vgg
from experiments.models.vit import vit
from sparsejax.checks import check_choice

MODELS: dict[str, Callable[..., nn.Module]] = {
    # For images of 32 x 32.
    # 282,800 prunable weights, for CPUs: widths and stages are our choice.
    "vgg_small": partial(VGG, stage_sizes=(1, 1, 2, 2), widths=(16, 32, 64, 128)),
    "vgg16": partial(vgg, depth=16),
    "vgg19": partial(vgg, depth=19),
    "cifar_resnet18": partial(resnet, depth=18, form="cifar"),
    "cifar_resnet50": partial(resnet, depth=50, form="cifar"),
    "resnet20": partial(thin_resnet, depth=20),
    "resnet32": partial(thin_resnet, depth=32),
    "wrn_22_2": partial(wide_resnet, depth=22, widen=2),
    "wrn_28_10": partial(wide_resnet, depth=28, widen=10),
    # For images of 224 x 224.
    "resnet18": partial(resnet, depth=18),
    "resnet34": partial(resnet, depth=34),
    "resnet50": partial(resnet, depth=50),
    "vit_ti16": partial(vit, size="ti"),
    "vit_s16": partial(vit, size="s"),
    "vit_b16": partial(vit, size="b"),
}


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Makes a network by its name, a key of `MODELS`: images -> logits.

    Options are attributes of the network: all have dtype, axis_name and conv_form.
    """
    check_choice("name", name, MODELS)
    return MODELS[name](num_classes, **options)
