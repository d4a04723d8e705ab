"""The compiled steps of a run alone, or of several side by side.

Runs that differ in nothing but their seeds take the same step, from states of their own
on batches of their own. Side by side one compiled step is taken for all of them, mapped
over states that are stacked. Everything else of them stays apart.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import sparsejax as sj
from experiments.training.recorder import Clock
from experiments.training.run import Run, over_chunk
from experiments.training.state import TrainState, mapped_fields

PyTree = Any

_AXES = mapped_fields(TrainState)._replace(opt_state=mapped_fields(sj.SparsifyState))


class Program(NamedTuple):
    """How the steps of S runs are taken.

    Attributes:
        join: S states -> the one that `train` takes.
        split: That one -> S states, copies where S > 1.
        chunks: (first step, sizes) -> chunks of batches on the devices.
        train: By whether the topology may change: (state, chunk) -> (state, S metrics);
            gives the state up.
    """

    join: Callable[[Sequence[TrainState]], TrainState]
    split: Callable[[TrainState], Sequence[TrainState]]
    chunks: Callable[[int, Sequence[int]], Generator[PyTree, None, None]]
    train: dict[bool, Callable[[TrainState, PyTree], tuple[TrainState, list[PyTree]]]]


def make_program(runs: Sequence[Run], clock: Clock) -> Program:
    """Chooses how the steps of runs are taken; compiles nothing yet.

    Args:
        runs: One run, or several that differ in their seeds alone, by `jit`.
        clock: Is told of the time that compiling takes.

    Returns:
        The program.
    """
    if len(runs) > 1:
        return _side_by_side(runs, clock)
    (run,) = runs

    def train(may_update: bool) -> Any:
        def take(state: TrainState, chunk: PyTree) -> tuple[TrainState, list[PyTree]]:
            state, metrics = run.train[may_update](state, run.feed.data, chunk)
            return state, [metrics]

        return _compiling_left_out(take, clock)

    return Program(
        join=lambda states: states[0],
        split=lambda state: [state],
        chunks=run.feed.chunks,
        train={may_update: train(may_update) for may_update in run.train},
    )


def _side_by_side(runs: Sequence[Run], clock: Clock) -> Program:
    data = tuple(run.feed.data for run in runs)

    def apart(stacked: PyTree) -> list[PyTree]:
        return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(runs))]

    @jax.jit
    def join(states: Sequence[TrainState]) -> TrainState:
        joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        first = states[0]
        counted = joined.opt_state._replace(step=first.opt_state.step)
        return joined._replace(step=first.step, opt_state=counted)

    @jax.jit
    def split(state: TrainState) -> list[TrainState]:
        every = jax.vmap(lambda state: state, in_axes=(_AXES,))(state)
        return apart(every)

    def fetch(data: Sequence[PyTree], items: Sequence[PyTree]) -> PyTree:
        batches = [run.feed.fetch(*own) for run, *own in zip(runs, data, items)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

    def chunks(start: int, sizes: Iterable[int]) -> Generator[PyTree, None, None]:
        with contextlib.ExitStack() as stack:
            each = [
                stack.enter_context(contextlib.closing(run.feed.chunks(start, sizes)))
                for run in runs
            ]
            yield from zip(*each)

    def train(may_update: bool) -> Any:
        mapped = jax.vmap(
            runs[0].steps[may_update], in_axes=(_AXES, 0), out_axes=(_AXES, 0)
        )

        def step(state: TrainState, batch: PyTree) -> tuple[TrainState, list[PyTree]]:
            state, metrics = mapped(state, batch)
            return state, apart(metrics)

        steps = runs[0].parallel.train(over_chunk(step, fetch))
        return _compiling_left_out(
            lambda state, chunk: steps(state, data, chunk), clock
        )

    return Program(
        join=join,
        split=split,
        chunks=chunks,
        train={may_update: train(may_update) for may_update in runs[0].steps},
    )


def _compiling_left_out(take: Any, clock: Clock) -> Any:
    """Leaves out of the time of training that of a first call, which compiles."""
    is_first = True

    def timed(state: TrainState, chunk: PyTree) -> Any:
        nonlocal is_first
        if not is_first:
            return take(state, chunk)
        is_first = False
        jax.block_until_ready(state)  # or steps would run while nothing counts
        start = time.monotonic()
        taken = take(state, chunk)
        clock.leave_out(time.monotonic() - start)
        return taken

    return timed
