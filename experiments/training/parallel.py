"""Where training runs: one process or many, by pmap or by jit over a mesh.

    pmap   every device has the whole state and its share of each batch; gradients are
           averaged over devices. Batch norm sees a device's share, unless the model has
           the axis's name.
    jit    one program over all devices: the batch is sharded, the state replicated or,
           with `shard_state`, sharded too (parameters, masks and optimizer slots).
           Batch norm sees the whole batch.

Both keep the state unstacked, so that a checkpoint of one can be read by the other.
Batches come in chunks of some steps, arrays of [steps, examples, ...].
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.state import TrainState

PyTree = Any
AXIS = "batch"
MODES = ("pmap", "jit")


class Parallel(NamedTuple):
    """How states and batches get to the devices, and how functions are compiled there.

    Attributes:
        axis_name: The axis that a step averages over; None where it sees whole batches.
        put_state: Places a state of NumPy or device arrays.
        to_saved: Gives a placed state in a form that Orbax saves.
        saved_like: () -> what tells Orbax to restore that form.
        put_data: Places arrays whole on every device.
        put_chunk: Places this process's share of a chunk of batches.
        train: Compiles (state, data, chunk) -> (state, metrics); donates the state.
        evaluate: Compiles (state, data, chunk) -> sums.
    """

    axis_name: str | None
    put_state: Callable[[PyTree], TrainState]
    to_saved: Callable[[TrainState], PyTree]
    saved_like: Callable[[], PyTree]
    put_data: Callable[[PyTree], PyTree]
    put_chunk: Callable[[Mapping[str, np.ndarray]], PyTree]
    train: Callable[[Callable[..., Any]], Callable[..., Any]]
    evaluate: Callable[[Callable[..., Any]], Callable[..., Any]]


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


def make_parallel(
    mode: str, abstract_state: TrainState, shard_state: bool = False
) -> Parallel:
    """Chooses how to run on all devices of all processes.

    Args:
        mode: "pmap" or "jit".
        abstract_state: The state's structure and shapes, as `jax.eval_shape` gives it.
        shard_state: Whether "jit" shards the state over the devices too.

    Returns:
        How states and batches are placed and functions compiled.

    Raises:
        ValueError: If the mode is unknown, or pmap is to shard the state.
    """
    if mode not in MODES:
        raise ValueError(f"parallel must be one of {MODES}; got {mode!r}.")
    if mode == "pmap" and shard_state:
        raise ValueError('shard_state must be False with parallel="pmap"; got True.')
    if mode == "pmap":
        return _pmapped(abstract_state)
    return _over_mesh(abstract_state, shard_state)
