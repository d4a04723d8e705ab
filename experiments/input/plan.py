"""What every path sees: the order of examples and the numbers of their augmentation.

A pure function of the seed and the epoch, so that any step can be computed without the
ones before it: resuming needs nothing but the step, and neither the number of processes
nor that of workers changes what is seen.
"""

import functools
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Sets these keys apart from others that a run derives from the same seed.
_STREAM = 0x1A9E

_lock = threading.Lock()


class EpochPlan(NamedTuple):
    """An epoch; rows i of all fields belong together.

    Attributes:
        order: int32[n], the examples in the order they are seen.
        crop: int32[n, 2] in [0, 2 * pad], where to cut the padded image: row, column.
        flip: bool[n], whether to mirror it.
    """

    order: Any
    crop: Any
    flip: Any


def epoch_plan(
    seed: int | jax.Array, epoch: int | jax.Array, num_examples: int, pad: int
) -> EpochPlan:
    """Draws an epoch's order and augmentation, the same on every kind of device.

    Args:
        seed: Seed of the run, which may be traced.
        epoch: Epoch, counted from 0, which may be traced.
        num_examples: Examples in the set.
        pad: Pixels of padding on each side before the crop.

    Returns:
        The plan, as JAX arrays.
    """
    # Threefry by name: its numbers are the same everywhere, whatever the default is.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    order, crop, flip = jax.random.split(jax.random.fold_in(key, epoch), 3)
    rows = jnp.arange(num_examples, dtype=jnp.int32)
    return EpochPlan(
        order=jax.random.permutation(order, rows),
        crop=jax.random.randint(crop, (num_examples, 2), 0, 2 * pad + 1, jnp.int32),
        flip=jax.random.bernoulli(flip, shape=(num_examples,)),
    )


_jitted_plan = jax.jit(epoch_plan, static_argnums=(2, 3))


@functools.lru_cache(maxsize=4)
def _cached_plan(seed: int, epoch: int, num_examples: int, pad: int) -> EpochPlan:
    # On the CPU, so as not to wait for training steps queued on the accelerator.
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to use the accelerator alone
        device = jax.local_devices()[0]
    with jax.default_device(device):
        plan = _jitted_plan(seed, epoch, num_examples, pad)
    return EpochPlan(*(np.asarray(field) for field in plan))


def host_plan(seed: int, epoch: int, num_examples: int, pad: int) -> EpochPlan:
    """Gives `epoch_plan` as NumPy arrays, computed once for the threads that ask.

    Args:
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        num_examples: Examples in the set.
        pad: Pixels of padding on each side before the crop.

    Returns:
        The plan, read-only.
    """
    with _lock:
        return _cached_plan(seed, epoch, num_examples, pad)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Counts an epoch's whole batches; the examples left over are not seen in it.

    Args:
        num_examples: Examples in the set.
        batch_size: Examples a step, over all processes.

    Returns:
        The number of steps, at least 1.

    Raises:
        ValueError: If the set does not fill one batch.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be from 1 to the {num_examples} examples of the set; "
            f"got {batch_size}."
        )
    return num_examples // batch_size
