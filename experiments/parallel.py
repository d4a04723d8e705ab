"""Where training runs: one process or many, by pmap or by jit over a mesh.

    pmap   every device has the whole state and its share of each batch; gradients are
           averaged over devices. Batch norm sees a device's share, unless the model has
           the axis's name.
    jit    one program over all devices: the batch is sharded, the state replicated or,
           with `shard_state`, sharded too (parameters, masks and optimizer state).
           Batch norm sees the whole batch.

Both keep the state unstacked, so that a checkpoint of one can be read by the other.
Batches come in chunks of some steps, arrays of [steps, examples, ...].
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.step import TrainState

PyTree = Any
AXIS = "batch"
MODES = ("pmap", "jit")


class Parallel(NamedTuple):
    """How states and batches get to devices, and how functions are compiled there."""

    # The axis that a step averages over; None where it sees whole batches.
    axis_name: str | None
    # Places a state of NumPy or device arrays.
    put_state: Callable[[PyTree], TrainState]
    # Returns a placed state in a form that Orbax saves.
    to_saved: Callable[[TrainState], PyTree]
    saved_like: Callable[[], PyTree]  # () -> what tells Orbax to restore that form
    put_data: Callable[[PyTree], PyTree]  # places arrays whole on every device
    # Places this process's share of a chunk of batches.
    put_chunk: Callable[[Mapping[str, np.ndarray]], PyTree]
    # Compiles (state, data, chunk) -> (state, metrics); donates the state.
    train: Callable[[Callable[..., Any]], Callable[..., Any]]
    # Compiles (state, data, chunk) -> sums.
    evaluate: Callable[[Callable[..., Any]], Callable[..., Any]]


def make_parallel(
    mode: str, abstract_state: TrainState, shard_state: bool = False
) -> Parallel:
    """Chooses how to run on all devices of all processes."""
    if mode not in MODES:
        raise ValueError(f"parallel must be one of {MODES}; got {mode!r}.")
    if mode == "pmap" and shard_state:
        raise ValueError('shard_state must be False with parallel="pmap"; got True.')
    if mode == "pmap":
        return _pmapped(abstract_state)
    return _over_mesh(abstract_state, shard_state)


def _pmapped(abstract_state: TrainState) -> Parallel:
    devices = jax.local_device_count()
    # Placed on all local devices at once, or each call would copy it there again.
    everywhere = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), P())

    def put_chunk(chunk: Mapping[str, np.ndarray]) -> PyTree:
        def split(array: np.ndarray) -> np.ndarray:
            steps, examples, *shape = array.shape
            parts = array.reshape(steps, devices, examples // devices, *shape)
            return np.swapaxes(parts, 0, 1)

        return {name: split(array) for name, array in chunk.items()}

    def put(tree: PyTree) -> Any:
        return jax.device_put(tree, everywhere)

    return Parallel(
        axis_name=AXIS,
        put_state=put,
        to_saved=lambda state: jax.tree.map(np.asarray, jax.device_get(state)),
        # NumPy gives NumPy back, whatever devices saved it.
        saved_like=lambda: jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state
        ),
        put_data=put,
        put_chunk=put_chunk,
        train=lambda function: jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, None, 0),
            out_axes=(None, None),
            donate_argnums=0,
        ),
        evaluate=lambda function: jax.pmap(
            function, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None
        ),
    )


def _sharding(leaf: Any, mesh: Mesh, shard: bool) -> NamedSharding:
    """Shards the longest axis that the devices divide; small leaves are replicated."""
    fitting = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0 and size]
    if not shard or not fitting:
        return NamedSharding(mesh, P())
    axis = max(fitting, key=lambda i: leaf.shape[i])
    return NamedSharding(
        mesh, P(*[AXIS if i == axis else None for i in range(axis + 1)])
    )


def _over_mesh(abstract_state: TrainState, shard_state: bool) -> Parallel:
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    replicated = NamedSharding(mesh, P())
    by_example = NamedSharding(mesh, P(None, AXIS))
    shardings = jax.tree.map(lambda x: _sharding(x, mesh, shard_state), abstract_state)

    def put(tree: PyTree, sharding: PyTree) -> Any:
        def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
                return jax.device_put(leaf, sharding)
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

        return jax.tree.map(place, tree, sharding)

    def put_chunk(chunk: Mapping[str, np.ndarray]) -> PyTree:
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(by_example, x), dict(chunk)
        )

    return Parallel(
        axis_name=None,
        put_state=lambda state: put(state, shardings),
        to_saved=lambda state: state,
        saved_like=lambda: jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding),
            abstract_state,
            shardings,
        ),
        put_data=lambda tree: put(tree, jax.tree.map(lambda _: replicated, tree)),
        put_chunk=put_chunk,
        train=lambda function: jax.jit(
            function, donate_argnums=0, out_shardings=(shardings, replicated)
        ),
        evaluate=lambda function: jax.jit(function, out_shardings=replicated),
    )


# Processes.


def join_processes(
    distributed: bool,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins this process to the others of the run, before JAX looks for devices.

    Without arguments it asks JAX whether a scheduler (SLURM's `srun`, `mpirun`, a TPU
    pod) has started several; only `distributed` makes it an error that none has.
    """
    given = [coordinator is not None, processes is not None, process is not None]
    if any(given) and not all(given):
        raise ValueError(
            "coordinator, processes and process must be given together; got "
            f"{coordinator=}, {processes=}, {process=}."
        )
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if not all(given) and tasks != "1" and "SLURM_STEP_NODELIST" not in os.environ:
        raise ValueError(
            "SLURM_NTASKS must be 1 for a process that srun did not start; got "
            f"{tasks}: start it with `srun python -m ...`, or unset it."
        )
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, TypeError) as error:
        if all(given) or "be defined" not in str(error):
            raise ValueError(f"the processes could not be joined: {error}") from None
        if distributed:
            raise ValueError(
                "distributed must be False where no scheduler that JAX knows has "
                "started the processes; got True: give coordinator, processes and "
                "process."
            ) from None
    except RuntimeError as error:
        raise ValueError(
            f"the processes could not be joined: {str(error).splitlines()[0]}"
        ) from None
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"the {jax.process_count()} processes must be joined; got a pod that JAX "
            "does not detect: give coordinator, processes and process."
        )


# EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


class Preempted(Exception):
    """Training was stopped from outside after its state had been saved."""

    code = EXIT_PREEMPTED


class PreemptionWatch:
    """Whether the run should save and leave, at the same step on every process.

    A context manager; outside of it, SIGTERM and Ctrl-C do what they did before. A
    second Ctrl-C ends the run at once. Before the first step there is nothing to save:
    SIGTERM then ends the process also while XLA compiles, when Python handles nothing.
    """

    def __init__(self) -> None:
        """Makes a watch that does not watch yet."""
        self._asked: int | None = None
        self._has_steps = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionWatch":
        """Starts to watch for SIGTERM and SIGINT."""
        # With several processes, jax.distributed has its own watch, which agrees on a
        # step: all must save the same one.
        if (
            jax.process_count() == 1
            and threading.current_thread() is threading.main_thread()
        ):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._woken = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._exit_early, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Restores what handled the signals before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._woken)
            os.close(self._pipe[1])  # which ends the thread

    def _exit_early(self) -> None:
        while number := os.read(self._pipe[0], 1):  # as soon as a signal comes
            if number[0] == signal.SIGTERM and not self._has_steps:
                print("stopped before a step; run the command again.", file=sys.stderr)
                os._exit(EXIT_PREEMPTED)
        os.close(self._pipe[0])

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def should_stop(self, step: int) -> bool:
        """Whether to save at this step and leave; every process asks at each one."""
        self._has_steps = True
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked is not None

    def preempted(self, step: int) -> Preempted:
        """Returns what to raise once the state is saved."""
        reason = Preempted(f"stopped at step {step}; run the command again.")
        if self._asked == signal.SIGINT:
            reason.code = EXIT_INTERRUPTED
        return reason
