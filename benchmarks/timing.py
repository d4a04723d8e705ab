"""Timing of compiled functions, alternating them so that a slow minute hits all."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

COMPILES = 3  # how often a step is compiled: what is printed is the median


def median_seconds(
    functions: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], repeats: int
) -> dict[str, float]:
    """Times functions in turn, A B C A B C ..., after one call of each to compile.

    Args:
        functions: Functions by name, jitted here.
        args: The arguments that each is called with.
        repeats: How many times each is timed.

    Returns:
        The median seconds of each, until its result is ready.
    """
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in compiled.values():
        jax.block_until_ready(function(*args))
    for _ in range(repeats):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*args))
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def machine() -> str:
    """Names what the figures were measured on.

    Returns:
        A line with the devices and versions.
    """
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind}, {platform.machine()}, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )
