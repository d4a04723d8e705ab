"""A whole ResNet-50 training step, dense and with GraNet, side by side.

    python -m benchmarks.step --batch_size=8 --repeats=10

Forward, backward and update on random images. Prints the seconds of an ordinary step,
its temporary memory and the time to trace, lower and compile it, each beside the dense
step's.
"""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.cases import RECIPES, granet
from benchmarks.timing import COMPILES, Measured, alternate, machine
from experiments.models import create_model
from experiments.step import create_state, make_train_step

BLOCK = 5  # steps of one kind at a time, as in training


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
    model = create_model("resnet50", 1000)
    dense = optax.with_extra_args_support(RECIPES["sgd"]())
    sparse = granet(dense, interval=10**4)
    start = create_state(model, lambda masks: sparse, (size, size, 3), seed=0)

    def measured(tx: Any, **options: Any) -> Measured:
        step = make_train_step(
            model, tx, label_smoothing=0.1, accumulation=1, axis_name=None, **options
        )
        return Measured(step, start._replace(opt_state=tx.init(start.params)))

    rows = {
        "dense": measured(dense),
        "GraNet, compiled separately": measured(sparse, may_update=False),
        "GraNet, decided as it runs": measured(sparse),
    }
    for _ in range(COMPILES):
        for row in rows.values():
            row.compile(batch)
    alternate(list(rows.values()), batch, repeats=options.repeats, block=BLOCK)
    base = rows["dense"]
    print(f"{'':28} {'s':>7} {'x':>6} {'MB temp':>8} {'s compile':>9} {'x':>6}")
    for name, row in rows.items():
        compiling = row.compile_seconds / base.compile_seconds
        print(
            f"{name:28} {row.seconds:7.3f} {row.seconds / base.seconds:6.3f} "
            f"{row.temporary / 1e6:8.1f} {row.compile_seconds:9.2f} {compiling:6.2f}"
        )


if __name__ == "__main__":
    main()
