"""The networks of the comparison. None has batch statistics."""

import dataclasses
from collections.abc import Iterator, Mapping

import flax.linen as nn
from ml_collections import ConfigDict

from experiments.conditions import Condition
from experiments.input.digits import CLASSES
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mlp import DigitsMLP

NETWORKS: Mapping[str, type[nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "digits_mlp": DigitsMLP,
}


def make_network(config: ConfigDict) -> nn.Module:
    """Makes the network of a comparison.

    Args:
        config: `model` and `model_options`, as in `experiments/configs/digits.py`.

    Returns:
        The network, from images to logits.
    """
    return NETWORKS[config.model](CLASSES, **config.model_options)


def network_conditions(config: ConfigDict) -> Iterator[Condition]:
    """Says what the fields of `make_network` must be.

    Args:
        config: The configuration.

    Yields:
        The conditions.
    """
    yield "model", config.model in NETWORKS, f"one of {', '.join(NETWORKS)}"
    options = [field.name for field in dataclasses.fields(NETWORKS[config.model])]
    options = [name for name in options if name not in ("classes", "parent", "name")]
    yield (
        "model_options",
        set(config.model_options) <= set(options),
        f"of {config.model}'s: {', '.join(options) or 'none'}",
    )
    if "widths" in config.model_options:
        widths = config.model_options["widths"]
        is_cnn = config.model == "digits_cnn"  # whose layers are fixed
        number = str(len(DigitsCNN.widths)) if is_cnn else "one or more"
        yield (
            "model_options.widths",
            isinstance(widths, tuple)
            and (len(widths) == len(DigitsCNN.widths) if is_cnn else len(widths) > 0)
            and all(isinstance(width, int) and width >= 1 for width in widths),
            f"a tuple of {number} integers of at least 1",
        )
