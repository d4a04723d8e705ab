"""Exact selection against what a user would do instead, side by side.

    python -m benchmarks.selection --size=25500000 --repeats=10

Keeps the largest tenth of |w| over as many weights as ResNet-50 has, by
`sparsejax.top_k_mask` and `sparsejax.kth_largest`, by sorting, by `jax.lax.top_k`, and
by a quantile, which is not exact where scores tie. The unit is one counting pass, the
least that any selection must do.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sparsejax as sj
from benchmarks.timing import machine, median_seconds


def candidates(k: int) -> dict[str, Callable[[jax.Array], Any]]:
    """Makes the functions to compare.

    Args:
        k: How many of the largest to select.

    Returns:
        Functions of an array by name, the counting pass first.
    """
    return {
        "one counting pass": lambda x: jnp.sum(x > 1.0, dtype=jnp.int32),
        "sj.kth_largest": lambda x: sj.kth_largest(x, k),
        "sj.top_k_mask": lambda x: sj.top_k_mask(x, k),
        "jnp.quantile": lambda x: x > jnp.quantile(x, 1 - k / x.size),
        "jnp.sort": lambda x: x > jnp.sort(x)[x.size - k - 1],
        "jax.lax.top_k": lambda x: x >= jax.lax.top_k(x, k)[0][-1],
    }


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Time exact selection.")
    parser.add_argument("--size", type=int, default=25_500_000, help="weights")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    options = parser.parse_args()
    print(f"{options.size:,} float32, k = n / 10, {options.repeats} runs; {machine()}")
    scores = jnp.abs(jax.random.normal(jax.random.key(0), (options.size,)))
    functions = candidates(options.size // 10)
    seconds = median_seconds(functions, (scores,), options.repeats)
    unit, sort = seconds["one counting pass"], seconds["jnp.sort"]
    print(f"{'':20} {'seconds':>8} {'passes':>8} {'of jnp.sort':>12}")
    for name, time in seconds.items():
        print(f"{name:20} {time:8.3f} {time / unit:8.1f} {time / sort:12.4f}")


if __name__ == "__main__":
    main()
