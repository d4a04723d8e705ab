"""The optimizer step alone: dense, and wrapped with GraNet.

    python -m benchmarks.update --repeats=10
    python -m benchmarks.update --devices --trees resnet50 --repeats=4

Over ResNet-50's 54 tensors and over the blocks of GPT-2 small, with SGD and with AdamW,
buffers donated. Prints the seconds of an ordinary step and of a topology update, each
compiled separately (`update_topology=False` and `True`) and decided as it runs; the
temporary memory that the compiled step needs; and the time to trace, lower and compile
it. Each is beside the plain optimizer in the same run, and beside one read of weights
and gradients, a sum of each, and one counting pass over them, how many are above a
number: what selection is made of. Time is by the clock, and that of all cores added up,
which says more on a machine that is shared.

`--devices` prints instead what an update costs on one device and on several, see
`benchmarks.devices`. `--jaxpruner` adds what JaxPruner takes, where it is installed.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from benchmarks import devices
from benchmarks.cases import RECIPES, TREES, draw_tree, granet, optimizer_step
from benchmarks.peers import jaxpruner
from benchmarks.timing import COMPILES, Measured, alternate, machine

PyTree = Any
Rows = dict[str, Measured]
UPDATE = 1  # an interval at which all steps but the first are topology updates
FIRST_STEP = 1101  # none of the next 98 steps looks for weights outside the masks
INTERVALS = {"ordinary step": 10**4, "topology update": UPDATE}


def _sparse(
    recipe: str, interval: int, params: PyTree, packed: bool = False, **options: Any
) -> Measured:
    """The step of GraNet around a recipe."""
    tx = granet(RECIPES[recipe](), interval)
    tx = sj.with_packed_masks(tx) if packed else tx
    opt_state = optax.tree.set(tx.init(params), step=jnp.int32(FIRST_STEP))
    return Measured(optimizer_step(tx, **options), (params, opt_state))


def _rows(recipe: str, params: PyTree) -> Rows:
    """What is measured of one recipe, the dense step first."""
    dense = RECIPES[recipe]()
    rows = {"dense": Measured(optimizer_step(dense), (params, dense.init(params)))}
    for name, interval in INTERVALS.items():
        measured = functools.partial(_sparse, recipe, interval, params)
        separate = {"update_topology": interval == UPDATE}
        rows[f"{name}, decided as it runs"] = measured()
        rows[f"{name}, compiled separately"] = measured(**separate)
        rows[f"{name}, separately, 1-bit masks"] = measured(packed=True, **separate)
    return rows


def _passes(params: PyTree) -> Rows:
    """What an update is compared with: a number of each array."""

    def taking(number: Callable[[jax.Array], jax.Array]) -> Measured:
        step = lambda params, grads: (params, jax.tree.map(number, (params, grads)))
        return Measured(step, params)

    return {
        "one read of weights and gradients": taking(jnp.sum),
        "one counting pass over them": taking(
            lambda x: jnp.sum(x > 1.0, dtype=jnp.int32)
        ),
    }


def _jaxpruner_rows(recipe: str, params: PyTree) -> Rows:
    """What JaxPruner takes, or nothing where it is not installed."""
    rows = {}
    # Its first step updates too, and is not counted.
    for name, interval in INTERVALS.items():
        for method in "RigL", "MagnitudePruning":
            peer = jaxpruner(method, RECIPES[recipe](), interval)
            if peer is not None:
                tx, after = peer
                step = optimizer_step(tx, after)
                rows[f"JaxPruner {method}, {name}"] = Measured(
                    step, (params, tx.init(params))
                )
    return rows


def _print_table(tree: str, recipe: str, options: argparse.Namespace) -> None:
    """Measures one recipe on one tree and prints a row for each step."""
    params, grads = (draw_tree(tree, options.scale, seed) for seed in (0, 1))
    rows = _rows(recipe, params) | _passes(params)
    if options.jaxpruner:
        rows |= _jaxpruner_rows(recipe, params)
    for _ in range(options.compiles):
        for row in rows.values():
            row.compile(grads)
    alternate(list(rows.values()), grads, repeats=options.repeats)
    masks = sj.get_masks(granet(RECIPES[recipe](), UPDATE).init(params))
    weights = sj.count_prunable(masks)
    dense = rows["dense"]
    print(
        f"\n{tree}, {recipe}: {weights:,} prunable float32 weights, "
        f"{weights * 4 / 1e6:.0f} MB, in {len(jax.tree.leaves(masks))} tensors"
    )
    print(
        f"{'':43} {'s':>8} {'x dense':>8} {'CPU s':>8} {'x dense':>8} "
        f"{'MB temp':>8} {'x weights':>9} "
        f"{'CPU s compile':>13} {'s compile':>9} {'kernels':>7}"
    )
    for name, row in rows.items():
        print(
            f"{name:43} {row.seconds:8.4f} {row.seconds / dense.seconds:8.2f} "
            f"{row.cpu_seconds:8.4f} {row.cpu_seconds / dense.cpu_seconds:8.2f} "
            f"{row.temporary / 1e6:8.1f} {row.temporary / weights / 4:9.2f} "
            f"{row.compile_cpu_seconds:13.2f} {row.compile_seconds:9.2f} "
            f"{row.kernels:7}",
            flush=True,
        )


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description="Time the wrapped optimizer's step.")
    parser.add_argument("--trees", choices=TREES, nargs="+", default=list(TREES))
    parser.add_argument("--recipes", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the widths")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    parser.add_argument("--compiles", type=int, default=COMPILES, help="of each")
    parser.add_argument("--devices", action="store_true", help="one and several")
    parser.add_argument("--jaxpruner", action="store_true", help="time it as well")
    options = parser.parse_args()
    print(machine())
    if options.devices:
        for tree in options.trees:
            devices.print_table(tree, options)
        return
    if options.jaxpruner and jaxpruner("RigL", optax.sgd(0.1), 1) is None:
        parser.error("JaxPruner is not installed: see benchmarks/peers.py.")
    for tree in options.trees:
        for recipe in options.recipes:
            _print_table(tree, recipe, options)


if __name__ == "__main__":
    main()
