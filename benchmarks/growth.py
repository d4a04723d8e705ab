"""How the cost of a topology update grows with the number of weights.

    python -m benchmarks.growth --sizes 1e6 4e6 16e6 64e6 200e6 --figure=growth.png

GraNet's update with SGD, on eight layers of float32 weights: a global prune, then a
drop and growth in each layer. A cost that is linear has the same nanoseconds a weight
at all sizes.
"""

import argparse

import jax.numpy as jnp
import numpy as np

from benchmarks.cases import RECIPES, granet, optimizer_step
from benchmarks.timing import Measured, alternate, machine

LAYERS, COLUMNS = 8, 4096


def measure(size: int, repeats: int) -> tuple[int, float]:
    """Times the update.

    Args:
        size: About how many weights.
        repeats: How many times it is timed, at least.

    Returns:
        The number of weights and the median seconds.
    """
    shape = max(1, size // (LAYERS * COLUMNS)), COLUMNS
    draw = np.random.default_rng(0)
    params, grads = (
        [jnp.asarray(draw.standard_normal(shape, np.float32)) for _ in range(LAYERS)]
        for _ in range(2)
    )
    tx = granet(RECIPES["sgd"](), interval=1)
    step = optimizer_step(tx, update_topology=True)
    update = Measured(step, (params, tx.init(params)))
    update.compile(grads)
    alternate([update], grads, repeats=repeats)
    return sum(leaf.size for leaf in params), update.seconds


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
        weights, seconds = measure(int(size), options.repeats)
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
