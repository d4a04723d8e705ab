"""The optimizer step alone: dense, and wrapped with GraNet, over ResNet-50's weights.

    python -m benchmarks.update --repeats=10

Prints the seconds of an ordinary step and of a topology update, the temporary memory
that the compiled step needs and the time to compile it, each beside those of the plain
optimizer in the same run. The units of an update are one read of weights and gradients,
a sum of each, and one counting pass over them, how many are above a number: what
selection is made of.
`--jaxpruner` adds what JaxPruner takes, where it is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks.peers import jaxpruner
from benchmarks.timing import COMPILES, machine
from experiments.models import create_model

PyTree = Any
After = Callable[[PyTree, PyTree], PyTree]


def resnet50_params(scale: float, seed: int) -> PyTree:
    """Draws weights of the shapes of ImageNet's ResNet-50, those that are pruned.

    Args:
        scale: The number of weights, in relation to ResNet-50's: outputs are scaled.
        seed: Seed of the values.

    Returns:
        float32 kernels by their paths.
    """
    model = create_model("resnet50", 1000)
    images = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    draw = np.random.default_rng(seed)

    def values(leaf: Any) -> jax.Array:
        *inputs, outputs = leaf.shape
        shape = (*inputs, max(1, round(outputs * scale)))
        return jnp.asarray(draw.standard_normal(shape, np.float32))

    leaves = jax.tree.leaves_with_path(shapes["params"])
    return {
        jax.tree_util.keystr(p): values(leaf) for p, leaf in leaves if leaf.ndim > 1
    }


def keep(params: PyTree, opt_state: PyTree) -> PyTree:
    """Leaves parameters as a step has left them.

    Args:
        params: Any.
        opt_state: Any.

    Returns:
        The parameters.
    """
    del opt_state
    return params


def steps(tx: optax.GradientTransformation, after: After = keep, **options: Any) -> Any:
    """Makes an optimizer step that may write over its arguments.

    Args:
        tx: The optimizer.
        after: What is done with (params, opt_state) after each step.
        **options: Extra arguments of its update.

    Returns:
        (params, opt_state, grads) -> (params, opt_state), jitted.
    """

    def step(params: PyTree, opt_state: PyTree, grads: PyTree) -> Any:
        updates, opt_state = tx.update(grads, opt_state, params, **options)
        return after(optax.apply_updates(params, updates), opt_state), opt_state

    return jax.jit(step, donate_argnums=(0, 1))


WARM_UP = 2  # runs of each that are not counted


def median(seconds: list[float]) -> float:
    """Gives the median of what was timed after the runs that are not counted.

    Args:
        seconds: The time of each run.

    Returns:
        The median.
    """
    return statistics.median(seconds[WARM_UP:])


class Unit:
    """What an update is compared with: a number of each array."""

    def __init__(self, function: Callable[[jax.Array], jax.Array]) -> None:
        """Compiles nothing yet.

        Args:
            function: Gives the number.
        """
        self.seconds: list[float] = []
        self._run = jax.jit(lambda *trees: jax.tree.map(function, trees))

    def run(self, *trees: PyTree) -> None:
        """Takes and times one pass."""
        start = time.perf_counter()
        jax.block_until_ready(self._run(*trees))
        self.seconds.append(time.perf_counter() - start)


class Figures:
    """What was measured of one optimizer."""

    def __init__(
        self,
        tx: optax.GradientTransformation,
        params: PyTree,
        after: After = keep,
        **options: Any,
    ) -> None:
        """Compiles the step, and makes a state of its own to run it on.

        Args:
            tx: The optimizer.
            params: Parameters of any values.
            after: What is done with (params, opt_state) after each step.
            **options: Extra arguments of its update.
        """
        # Copies, as a step may write over them and states may share a buffer.
        self.params = jax.tree.map(jnp.copy, params)
        self.opt_state = jax.tree.map(jnp.copy, tx.init(self.params))
        times = []
        for _ in range(COMPILES):
            jax.clear_caches()  # also of what is traced on the way
            start = time.perf_counter()
            step = steps(tx, after, **options)
            self.step = step.lower(self.params, self.opt_state, params).compile()
            times.append(time.perf_counter() - start)
        self.compile_seconds = statistics.median(times)
        self.temporary = self.step.memory_analysis().temp_size_in_bytes
        self.seconds: list[float] = []

    def run(self, grads: PyTree) -> None:
        """Takes and times one step."""
        start = time.perf_counter()
        self.params, self.opt_state = self.step(self.params, self.opt_state, grads)
        jax.block_until_ready(self.params)
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Time the wrapped optimizer's step.")
    parser.add_argument("--scale", type=float, default=1.0, help="of the widths")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    parser.add_argument("--jaxpruner", action="store_true", help="time it as well")
    options = parser.parse_args()
    params = resnet50_params(options.scale, seed=0)
    grads = resnet50_params(options.scale, seed=1)
    weights = sum(leaf.size for leaf in params.values())
    print(f"{weights:,} prunable weights; {machine()}")

    def sgd() -> optax.GradientTransformation:
        return optax.sgd(1e-6, momentum=0.9, nesterov=True)

    def granet(interval: int) -> optax.GradientTransformation:
        return sj.granet_transform(
            sgd(), total_steps=10**6, end_step=10**5, update_interval=interval
        )

    # An interval of 1 makes every step but the first a topology update.
    measured = {
        "optax.sgd": Figures(sgd(), params),
        "ordinary step": Figures(granet(10**4), params),
        "ordinary step, apart": Figures(granet(10**4), params, update_topology=False),
        "ordinary step, apart, 1 bit": Figures(
            sj.with_packed_masks(granet(10**4)), params, update_topology=False
        ),
        "topology update": Figures(granet(1), params),
        "topology update, apart": Figures(granet(1), params, update_topology=True),
        "topology update, apart, 1 bit": Figures(
            sj.with_packed_masks(granet(1)), params, update_topology=True
        ),
    }
    if options.jaxpruner:
        # Its first step updates too: an ordinary one is timed from the third on.
        for name, interval in ("ordinary step", 10**4), ("topology update", 1):
            for method in "RigL", "MagnitudePruning":
                peer = jaxpruner(method, sgd(), interval)
                if peer is None:
                    parser.error("JaxPruner is not installed: see benchmarks/peers.py.")
                tx, after = peer
                measured[f"JaxPruner {method}, {name}"] = Figures(tx, params, after)
    read = Unit(jnp.sum)
    count = Unit(lambda x: jnp.sum(x > 1.0, dtype=jnp.int32))
    order = list(measured.values())
    for _ in range(options.repeats + WARM_UP):
        for figures in order:
            figures.run(grads)
        order = [*order[1:], order[0]]  # what runs after what changes what it takes
        for unit in read, count:
            unit.run(params, grads)
    plain = median(measured["optax.sgd"].seconds)
    one_read, one_count = median(read.seconds), median(count.seconds)
    print(f"one read of weights and gradients: {one_read:.4f} s")
    print(f"one counting pass over weights and gradients: {one_count:.4f} s")
    print(
        f"{'':45} {'s':>8} {'x sgd':>7} {'reads':>7} {'counts':>7} {'MB temp':>8} "
        f"{'s compile':>9}"
    )
    for name, figures in measured.items():
        seconds = median(figures.seconds)
        print(
            f"{name:45} {seconds:8.4f} {seconds / plain:7.2f} "
            f"{seconds / one_read:7.1f} {seconds / one_count:7.1f} "
            f"{figures.temporary / 1e6:8.1f} {figures.compile_seconds:9.2f}"
        )


if __name__ == "__main__":
    main()
