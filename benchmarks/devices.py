"""What an update costs on one device and on many, each in a process of its own.

    python -m benchmarks.devices --tree=resnet50

GraNet's topology update with SGD, compiled separately, on CPU devices: the only one;
one of eight; all eight by `jax.pmap`; all eight by `jax.jit`, replicated; and sharded,
each leaf along its last axis where it divides by eight. `python -m benchmarks.update
--devices` prints the same for several trees.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.cases import RECIPES, TREES, draw_tree, granet, optimizer_step
from benchmarks.timing import COMPILES, Measured, alternate, machine

PyTree = Any
DEVICES = 8
LAYOUTS = ("one device", "one of 8", "pmap 8", "replicated 8", "sharded 8")


def _placed(tree: PyTree, sharded: bool) -> PyTree:
    """Puts arrays on all devices, along the last axis or each as a whole."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))

    def place(leaf: jax.Array) -> jax.Array:
        split = sharded and leaf.ndim > 1 and leaf.shape[-1] % DEVICES == 0
        spec = P(*[None] * (leaf.ndim - 1), "data") if split else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


def _measure(
    layout: str, tree: str, scale: float, repeats: int, compiles: int
) -> dict[str, float]:
    """Measures an update in this process, which has as many devices as it needs."""
    params, grads = (draw_tree(tree, scale, seed) for seed in (0, 1))
    tx = granet(RECIPES["sgd"](), interval=1)
    step = optimizer_step(tx, update_topology=True)
    state = params, tx.init(params)
    args: tuple[Any, ...] = (grads,)
    jit: Callable[..., Any] = jax.jit
    if layout == "pmap 8":
        args = grads, jnp.arange(DEVICES)  # something must be mapped
        jit = lambda step, **options: jax.pmap(
            lambda state, grads, device: step(state, grads),
            in_axes=(None, None, 0),
            out_axes=None,
            **options,
        )
    elif layout in ("replicated 8", "sharded 8"):
        state, args = _placed((state, args), sharded=layout == "sharded 8")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        jit = functools.partial(jax.jit, out_shardings=(shardings, None))
    update = Measured(step, state, jit)
    for _ in range(compiles):
        update.compile(*args)
    alternate([update], *args, repeats=repeats)
    return {
        "seconds": update.seconds,
        "temporary": update.temporary,
        "compile_cpu_seconds": update.compile_cpu_seconds,
        "compile_seconds": update.compile_seconds,
        "kernels": update.kernels,
    }


def _measure_elsewhere(
    layout: str, tree: str, options: argparse.Namespace
) -> dict[str, float]:
    """Measures an update in a new process."""
    command = [sys.executable, "-m", "benchmarks.devices"]
    command += [f"--layout={layout}", f"--tree={tree}"]
    for name in "scale", "repeats", "compiles":
        command.append(f"--{name}={getattr(options, name)}")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(1 if layout == "one device" else DEVICES),
        "NPROC": str(DEVICES),  # XLA's thread pool; see docs/scaling.md
    }
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_table(tree: str, options: argparse.Namespace) -> None:
    """Measures all layouts, one after the other, and prints a row for each.

    Args:
        tree: One of `TREES`.
        options: `scale`, `repeats` and `compiles`.
    """
    print(f"GraNet's update with SGD, {tree} at {options.scale:g} of its width")
    print(
        f"{'':14} {'CPU s compile':>13} {'x':>6} {'s compile':>9} {'MB temp':>8} "
        f"{'s':>8} {'kernels':>7}"
    )
    base = 0.0
    for layout in LAYOUTS:
        found = _measure_elsewhere(layout, tree, options)
        compiling = found["compile_cpu_seconds"]
        base = base or compiling
        print(
            f"{layout:14} {compiling:13.1f} {compiling / base:6.2f} "
            f"{found['compile_seconds']:9.1f} {found['temporary'] / 1e6:8.1f} "
            f"{found['seconds']:8.4f} {found['kernels']:7.0f}",
            flush=True,
        )


def main() -> None:
    """Measures and prints a table, or one layout in this process."""
    parser = argparse.ArgumentParser(description="Time an update on many devices.")
    parser.add_argument("--tree", choices=TREES, default="resnet50")
    parser.add_argument("--scale", type=float, default=1.0, help="of the widths")
    parser.add_argument("--repeats", type=int, default=6, help="timed runs of each")
    parser.add_argument("--compiles", type=int, default=COMPILES, help="of each")
    parser.add_argument("--layout", choices=LAYOUTS, help="one alone, printed as JSON")
    options = parser.parse_args()
    if options.layout:
        sizes = options.scale, options.repeats, options.compiles
        print(json.dumps(_measure(options.layout, options.tree, *sizes)))
    else:
        print(machine())
        print_table(options.tree, options)


if __name__ == "__main__":
    main()
