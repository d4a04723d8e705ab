"""What the fields of an image configuration may be, checked before anything is read."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.configs.common import METHODS

# Whole numbers by the least that they may be.
_COUNTS = {
    0: (
        "pad",
        "profile_step",
        "rewind_epochs",
        "validation_examples",
        "warmup_epochs",
        "workers",
    ),
    1: (
        "accumulation",
        "batch_size",
        "checkpoint_every_steps",
        "drive_dense_epochs",
        "epochs",
        "drive_dense_epochs",
        "evaluate_every_epochs",
        "grasp_images_per_class",
        "image_size",
        "initialization_batches",
        "initialization_rounds",
        "keep_checkpoints",
        "log_every_steps",
        "profile_steps",
        "reference_batch_size",
        "steps_per_call",
        "total_steps",
        "update_interval_steps",
    ),
}
# Real numbers, or sequences or dictionaries of them, by their range.
_REALS = {
    "[0, inf)": ("learning_rate", "weight_decay"),
    "(0, inf)": ("clip_norm", "drop_factor"),
    "[1, inf)": ("top_kast_backward",),
    "[0, 1)": (
        "acdc_phases",
        "granet_st_initial_sparsity",
        "label_smoothing",
        "momentum",
        "sparsity",
    ),
    "[0, 1]": ("drop_at", "prune_rate"),
    "(0, 1)": ("round_fraction",),
    "(0, 1]": ("fine_tune_share", "pruning_share"),
}
_CHOICES = {
    "augment": ("cifar", "imagenet", "none"),
    "dtype": ("float32", "bfloat16", "float16"),
    "pad_mode": ("reflect", "zero"),
}
# Fields in steps of the reference batch; the length of a run is not among them.
_INTERVALS = ("update_interval_steps", "log_every_steps", "checkpoint_every_steps")


def check_config(config: ConfigDict) -> None:
    """Raises ValueError at the first field that is out of its range."""
    for least, counts in _COUNTS.items():
        for name in counts:
            count = config[name]
            if count is not None and not (_is_whole(count) and count >= least):
                raise ValueError(f"{name} must be at least {least}; got {count!r}.")
    if not (_is_whole(config.seed) and 0 <= config.seed < 2**32):
        raise ValueError(f"seed must be in [0, 2^32); got {config.seed!r}.")
    for interval, reals in _REALS.items():
        for name in reals:
            for real in _leaves(config[name]):
                if not is_in(real, interval):
                    raise ValueError(f"{name} must be in {interval}; got {real!r}.")
    for name, allowed in _CHOICES.items():
        if config[name] not in allowed:
            raise ValueError(f"{name} must be one of {allowed}; got {config[name]!r}.")
    if config.method is not None and config.method not in METHODS:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}; got {config.method!r}."
        )
    for name in ("dataset", "model", "method", "sparsity"):
        if config[name] is None:
            raise ValueError(f"{name} must be given; got None.")
    if config.image_size is not None and config.augment != "imagenet":
        raise ValueError(
            f'image_size must be None unless augment is "imagenet"; got '
            f"{config.image_size} with {config.augment!r}."
        )
    for value in _leaves(config.model_options):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        allowed_range = "[1, inf)" if isinstance(value, int) else "[0, inf)"
        if is_number and not is_in(value, allowed_range):
            raise ValueError(
                f"model_options must be in {allowed_range}; got {value!r}."
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_in(value: Any, interval: str) -> bool:
    """Whether a value is a number in an interval such as "[0, 1)".

    Example:
        >>> is_in(0, "[0, 1)"), is_in(1, "[0, 1)"), is_in(float("nan"), "[0, inf)")
        (True, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    low, high = map(float, interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    return above and (value < high if interval[-1] == ")" else value <= high)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, ConfigDict):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield value


def following_batch(config: ConfigDict) -> ConfigDict:
    """Returns a configuration whose rate and intervals are those of its batch size.

    The rate grows with the batch (Goyal et al., arXiv 1706.02677), intervals shrink:
    they stay as they are in images.
    """
    reference = config.reference_batch_size
    if reference in (None, config.batch_size):
        return config
    config = config.copy_and_resolve_references()
    factor = config.batch_size / reference
    config.learning_rate *= factor
    for name in _INTERVALS:
        config[name] = max(1, math.floor(config[name] / factor + 0.5))
    return config
