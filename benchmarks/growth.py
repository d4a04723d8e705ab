"""How the cost of a topology update grows with the number of weights.

    python -m benchmarks.growth --sizes 1e6 4e6 16e6 64e6 200e6 --figure=growth.png

GraNet's update alone, a global prune and an exchange by layer, on eight layers of
float32 weights. A cost that is linear has the same nanoseconds a weight at all sizes.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparsejax as sj
from benchmarks.timing import machine
from sparsejax.scores import rank_of_magnitude

PyTree = Any
LAYERS, COLUMNS = 8, 4096


@jax.jit
def update(params: PyTree, grads: PyTree, masks: PyTree) -> PyTree:
    """Prunes to 90 % and exchanges three tenths of each layer.

    Args:
        params: The weights.
        grads: Their gradients.
        masks: Dense masks.

    Returns:
        The new masks.
    """
    pruned = sj.prune_magnitude(params, masks, sparsity=0.9)
    return sj.exchange(params, grads, pruned, 0.3, key=rank_of_magnitude).masks


def seconds_of(size: int, repeats: int) -> tuple[int, float]:
    """Times the update.

    Args:
        size: About how many weights.
        repeats: How many times it is timed.

    Returns:
        The number of weights and the median seconds.
    """
    rows = max(1, size // (LAYERS * COLUMNS))
    draw = np.random.default_rng(0)

    def tree() -> PyTree:
        shape = (rows, COLUMNS)
        layers = (draw.standard_normal(shape, np.float32) for _ in range(LAYERS))
        return [jnp.asarray(layer) for layer in layers]

    params, grads = tree(), tree()
    masks = sj.dense_masks(params)
    jax.block_until_ready(update(params, grads, masks))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(update(params, grads, masks))
        times.append(time.perf_counter() - start)
    return sj.count_prunable(masks), statistics.median(times)


def main() -> None:
    """Measures, prints a table and draws the curve."""
    parser = argparse.ArgumentParser(description="Time updates of growing networks.")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[1e6, 4e6, 16e6, 64e6]
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    parser.add_argument("--figure", help="where to draw the curve")
    options = parser.parse_args()
    print(machine())
    print(f"{'weights':>14} {'s':>9} {'ns a weight':>12}")
    found = []
    for size in options.sizes:
        weights, seconds = seconds_of(int(size), options.repeats)
        found.append((weights, seconds))
        print(f"{weights:14,} {seconds:9.4f} {seconds / weights * 1e9:12.2f}")
    if options.figure:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
        axes.loglog(*zip(*found), marker="o")
        axes.set_xlabel("weights")
        axes.set_ylabel("seconds of a topology update")
        axes.grid(alpha=0.3)
        figure.savefig(options.figure, dpi=150)


if __name__ == "__main__":
    main()
