"""Timing of compiled functions, alternating them so that a slow minute hits all."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.kernels import distinct_kernels

PyTree = Any
COMPILES = 3  # how often a step is compiled: what is printed is the median


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Calls a function.

    Args:
        function: What to call.
        *args: Its arguments.

    Returns:
        Its result, and the seconds until all of it was ready.
    """
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


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
            seconds[name].append(timed(function, *args)[1])
    return {name: statistics.median(times) for name, times in seconds.items()}


class Measured:
    """A step compiled on a state of its own, and what was measured of it."""

    def __init__(
        self,
        step: Callable[..., Any],
        state: PyTree,
        jit: Callable[..., Any] = jax.jit,
    ) -> None:
        """Copies the state, as steps write over theirs; compiles nothing yet.

        Args:
            step: (state, *args) -> (state, result).
            state: What it starts from.
            jit: `jax.jit`, or what stands in its place.
        """
        self.state = jax.tree.map(jnp.copy, state)
        self._jit = lambda: jit(step, donate_argnums=0)
        self._compile_seconds: list[float] = []
        self._compile_cpu_seconds: list[float] = []
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []

    def compile(self, *args: Any) -> None:
        """Traces, lowers and compiles the step, and takes the time."""
        jax.clear_caches()  # also of what is traced on the way
        wall, cpu = time.perf_counter(), time.process_time()
        self.compiled = self._jit().lower(self.state, *args).compile()
        self._compile_seconds.append(time.perf_counter() - wall)
        self._compile_cpu_seconds.append(time.process_time() - cpu)

    def run(self, *args: Any, count: bool = True) -> None:
        """Takes one step; its seconds go into the median if it is to count."""
        cpu = time.process_time()
        (self.state, _), seconds = timed(self.compiled, self.state, *args)
        if count:
            self._seconds.append(seconds)
            self._cpu_seconds.append(time.process_time() - cpu)

    @property
    def seconds(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self._seconds)

    @property
    def cpu_seconds(self) -> float:
        """Median seconds that cores were busy with a step, added up."""
        return statistics.median(self._cpu_seconds)

    @property
    def compile_seconds(self) -> float:
        """Median seconds of compiling."""
        return statistics.median(self._compile_seconds)

    @property
    def compile_cpu_seconds(self) -> float:
        """Median seconds that cores were busy compiling, added up."""
        return statistics.median(self._compile_cpu_seconds)

    @property
    def temporary(self) -> int:
        """Bytes that the compiled step needs on a device beside its arguments."""
        memory = self.compiled.memory_analysis()
        return memory.temp_size_in_bytes if memory else 0

    @property
    def kernels(self) -> int:
        """How many kernels XLA compiled; see `distinct_kernels`."""
        return distinct_kernels(self.compiled.as_text())


def alternate(
    steps: Sequence[Measured], *args: Any, repeats: int, block: int = 2
) -> None:
    """Times steps in turn, a few of one and then of the next.

    The first of each turn is not counted, as it finds memory as another step left it.
    Each turn starts with another step.

    Args:
        steps: Compiled steps.
        *args: What all of them are called with.
        repeats: How many times each is timed, at least.
        block: Timed steps of one kind in a turn.
    """
    order = list(steps)
    for _ in range(-(-repeats // block)):
        for step in order:
            step.run(*args, count=False)
            for _ in range(block):
                step.run(*args)
        order = [*order[1:], order[0]]


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
