"""What a topology update costs: readers, and XLA's compiler."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparsejax as sj

ROOT = Path(__file__).parents[1]
LIBRARY = str(Path(sj.__file__).parent)
MOST_FILES, MOST_FUNCTIONS = 12, 100


def entered(function: Any, *args: Any) -> dict[str, set[CodeType]]:
    """The library's code that runs while a function is traced, by file."""
    found = defaultdict(set)

    def note(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(LIBRARY):
            found[os.path.relpath(code.co_filename, LIBRARY)].add(code)

    jax.clear_caches()  # what is traced already is not entered again
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        jax.make_jaxpr(function)(*args)
    finally:
        sys.setprofile(before)
    return found


def test_an_update_runs_through_few_files_and_functions():
    params = {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}
    tx = sj.granet_transform(
        optax.sgd(0.1, momentum=0.9), total_steps=10, end_step=5, update_interval=1
    )
    found = entered(
        lambda grads, *args: tx.update(grads, *args, update_topology=True),
        *(params, tx.init(params), params),
    )
    functions = sum(map(len, found.values()))
    listed = "\n".join(
        f"{file}: {', '.join(sorted(code.co_qualname for code in codes))}"
        for file, codes in sorted(found.items())
    )
    assert len(found) <= MOST_FILES and functions <= MOST_FUNCTIONS, (
        f"{len(found)} files, {functions} functions, lambdas and comprehensions:\n"
        f"{listed}"
    )


# With XLA's present CPU emitters, which the other tests do without (see conftest.py).
COUNT_KERNELS = """
import sys
import jax, jax.numpy as jnp, optax
from benchmarks.cases import granet, optimizer_step
from benchmarks.kernels import distinct_kernels

tx = granet(optax.sgd(0.1, momentum=0.9), interval=1)
step = jax.jit(optimizer_step(tx, update_topology=True))
for tensors in map(int, sys.argv[1:]):
    params = {
        f"{shape}/{tensor}/kernel": jnp.ones(shape)
        for shape in [(3, 3, 8, 16), (32, 10)] for tensor in range(tensors)
    }
    compiled = step.lower((params, tx.init(params)), params).compile()
    print(distinct_kernels(compiled.as_text()))
"""
MOST_KERNELS = 108


def test_tensors_of_one_shape_share_their_kernels():
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_KERNELS, "3", "6"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    few, many = map(int, done.stdout.split())
    assert few <= MOST_KERNELS
    assert many <= few + 4  # no tensor has one of its own
