"""A whole ResNet-50 training step, dense and with GraNet, side by side.

    python -m benchmarks.step --batch_size=8 --repeats=10

Forward, backward and update on random images. Prints the seconds of an ordinary step,
its temporary memory and the time to trace, lower and compile it, each beside the dense
step's.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from benchmarks.timing import COMPILES, machine
from experiments.models import create_model
from experiments.training.state import create_state
from experiments.training.steps import make_train_step

BLOCK = 5  # steps of one kind at a time, as in training


class Measured:
    """A compiled training step and what was measured of it."""

    def __init__(self, model: Any, tx: Any, start: Any, **options: Any):
        """Makes a state of its own to run the step on; compiles nothing yet.

        Args:
            model: The network.
            tx: The optimizer.
            start: A state, whose optimizer state is made anew.
            **options: More of `make_train_step`.
        """
        params = jax.tree.map(jnp.copy, start.params)
        state = start._replace(
            params=params,
            batch_stats=jax.tree.map(jnp.copy, start.batch_stats),
            opt_state=jax.tree.map(jnp.copy, tx.init(params)),
        )
        self.state = jax.tree.map(jnp.copy, state)
        self._make_step = functools.partial(
            make_train_step,
            model,
            tx,
            label_smoothing=0.1,
            accumulation=1,
            axis_name=None,
            **options,
        )
        self.compile_seconds: list[float] = []
        self.seconds: list[float] = []

    def compile(self, batch: Any) -> None:
        """Compiles the step and takes the time."""
        jax.clear_caches()  # also of what is traced on the way
        start = time.perf_counter()
        step = jax.jit(self._make_step(), donate_argnums=0)
        self.step = step.lower(self.state, batch).compile()
        self.compile_seconds.append(time.perf_counter() - start)
        memory = self.step.memory_analysis()
        self.temporary = memory.temp_size_in_bytes if memory else 0

    def run(self, batch: Any) -> None:
        """Takes and times one step."""
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Time whole training steps.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    options = parser.parse_args()
    print(f"ResNet-50, {options.batch_size} x {options.image_size} px; {machine()}")
    draw, size = np.random.default_rng(0), options.image_size
    images = draw.standard_normal((options.batch_size, size, size, 3), np.float32)
    labels = draw.integers(0, 1000, options.batch_size)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
    granet = sj.granet_transform(
        sgd, total_steps=10**6, end_step=10**5, update_interval=10**4
    )

    class Plain:
        """The dense optimizer, with the arguments that the step gives."""

        init = staticmethod(sgd.init)

        @staticmethod
        def update(grads: Any, state: Any, params: Any, **options: Any) -> Any:
            return sgd.update(grads, state, params)

    model = create_model("resnet50", 1000)
    start = create_state(model, lambda masks: granet, (size, size, 3), seed=0)
    measured = {
        "dense": Measured(model, Plain, start),
        "GraNet, compiled apart": Measured(model, granet, start, may_update=False),
        "GraNet, with updates": Measured(model, granet, start),
    }
    for _ in range(COMPILES):
        for found in measured.values():
            found.compile(batch)
    for _ in range(-(-options.repeats // BLOCK)):
        for found in measured.values():
            found.run(batch)  # not counted: it finds memory as another step left it
            found.seconds.pop()
            for _ in range(BLOCK):
                found.run(batch)
    median = statistics.median
    dense = measured["dense"]
    base, compiled = median(dense.seconds), median(dense.compile_seconds)
    print(f"{'':24} {'s':>7} {'x':>6} {'MB temp':>8} {'s compile':>9} {'x':>6}")
    for name, found in measured.items():
        seconds, compiling = median(found.seconds), median(found.compile_seconds)
        print(
            f"{name:24} {seconds:7.3f} {seconds / base:6.3f} "
            f"{found.temporary / 1e6:8.1f} {compiling:9.2f} {compiling / compiled:6.2f}"
        )


if __name__ == "__main__":
    main()
