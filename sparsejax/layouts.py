"""How the leaves of a tree lie in memory while all of them are counted or ranked.

`Apart` leaves each leaf as it is: nothing is copied, and sharded arrays stay where they
are, but each leaf gets code of its own for all that is done, which takes long to
compile and, on an accelerator, to launch. `Rows` copies all leaves into the rows of one
array: one kernel serves them all, at the price of the copy. Both count the same.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.counting import count_true

Shape = tuple[int, ...]
# Compiled, so that an eager call compiles once for its shapes, not at every call.
_jit = functools.partial(jax.jit, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """What counting and ranking need to know of L leaves that lie in A arrays.

    Attributes:
        shapes: The shapes of the leaves.
    """

    shapes: tuple[Shape, ...]

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The number of entries of each leaf."""
        return np.array([np.prod(shape, dtype=np.int64) for shape in self.shapes])

    def count_each(self, masks: Sequence[jax.Array]) -> jax.Array:
        """Counts what A bool arrays mark in each leaf: int32 [L]."""
        return self.count([[mask] for mask in masks])[0]

    @abc.abstractmethod
    def pack(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Gives the A arrays of L leaves of one dtype; what they hold beside is 0."""

    @abc.abstractmethod
    def unpack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Gives the L leaves of A arrays."""

    @abc.abstractmethod
    def spread(self, values: jax.Array) -> list[jax.Array]:
        """Spreads values [P, L], P for each leaf, so that they broadcast with arrays.

        Gives A arrays whose P elements do.
        """

    @abc.abstractmethod
    def positions(self, zero: jax.Array) -> list[jax.Array]:
        """Numbers the entries of each leaf row-major, from `zero` on."""

    @abc.abstractmethod
    def complement(self, masks: Sequence[jax.Array]) -> list[jax.Array]:
        """Marks the entries of leaves that A bool arrays do not mark."""

    @abc.abstractmethod
    def count(self, marks: Sequence[Sequence[jax.Array]]) -> jax.Array:
        """Counts what is marked in each leaf: A lists of P bool arrays, to [P, L]."""


class Apart(Layout):
    """Each leaf is an array of its own."""

    def pack(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Gives the leaves."""
        return list(leaves)

    def unpack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Gives the leaves."""
        return list(arrays)

    def spread(self, values: jax.Array) -> list[jax.Array]:
        """Gives each leaf its own values."""
        return [values[:, leaf] for leaf in range(len(self.shapes))]

    def positions(self, zero: jax.Array) -> list[jax.Array]:
        """Numbers entries without a reshape, which would gather shards."""
        numbered = []
        for shape in self.shapes:
            position, stride = zero, 1
            for axis in reversed(range(len(shape))):
                index = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
                position = position + index * jnp.int32(stride)
                stride *= shape[axis]
            numbered.append(position)
        return numbered

    def complement(self, masks: Sequence[jax.Array]) -> list[jax.Array]:
        """Inverts each mask."""
        return [~mask for mask in masks]

    @_jit
    def count(self, marks: Sequence[Sequence[jax.Array]]) -> jax.Array:
        """Counts in each leaf by itself."""
        counts = [count_true(marked) for marked in marks]
        return jnp.stack([jnp.stack(each) for each in zip(*counts)])


# Entries of a row: a leaf leaves half a row empty on average, and each row is a number
# to count.
_WIDTH = 4096


class Rows(Layout):
    """All leaves are in one array [rows, width]; each begins a new row."""

    @functools.cached_property
    def _width(self) -> int:
        return int(np.clip(self.sizes.max(), 1, _WIDTH))

    @functools.cached_property
    def _leaf_and_start(self) -> tuple[np.ndarray, np.ndarray]:
        """The leaf of each row and where in that leaf the row begins."""
        rows = -(-self.sizes // self._width)
        leaf = np.repeat(np.arange(len(rows)), rows)
        first = np.cumsum(rows) - rows
        return leaf, (np.arange(len(leaf)) - first[leaf]) * self._width

    @_jit
    def pack(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """Copies the leaves, filled up to whole rows."""
        parts = []
        for leaf in leaves:
            # The filling is a part of its own: to pad each leaf is a kernel for each.
            filling = jnp.zeros(-leaf.size % self._width, leaf.dtype)
            parts += [leaf.reshape(-1), filling]
        return [jnp.concatenate(parts).reshape(-1, self._width)]

    @_jit
    def unpack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Copies the leaves out of the array."""
        flat = arrays[0].reshape(-1)
        padded = self.sizes + -self.sizes % self._width
        starts = [jnp.int32(start) for start in np.cumsum(padded) - padded]
        # Both the same, but XLA does not see it: where the starts are known only as it
        # runs, leaves of one shape share a kernel, and it is kernels that take long to
        # compile.
        starts = jax.lax.cond(
            flat[0] == 0, lambda: starts, lambda: jax.lax.optimization_barrier(starts)
        )
        return [
            jax.lax.dynamic_slice(flat, [start], [size]).reshape(shape)
            for start, size, shape in zip(starts, self.sizes.tolist(), self.shapes)
        ]

    def spread(self, values: jax.Array) -> list[jax.Array]:
        """Gives each row the values of its leaf."""
        leaf, _ = self._leaf_and_start
        return [values[:, leaf, None]]

    def positions(self, zero: jax.Array) -> list[jax.Array]:
        """Numbers entries along the rows."""
        leaf, start = self._leaf_and_start
        in_row = jax.lax.broadcasted_iota(jnp.int32, (len(leaf), self._width), 1)
        return [(zero + start.astype(np.int32))[:, None] + in_row]

    @_jit
    def complement(self, masks: Sequence[jax.Array]) -> list[jax.Array]:
        """Inverts the mask where the rows hold entries of leaves."""
        (position,) = self.positions(jnp.int32(0))
        leaf, _ = self._leaf_and_start
        return [~masks[0] & (position < self.sizes[leaf].astype(np.int32)[:, None])]

    @_jit
    def count(self, marks: Sequence[Sequence[jax.Array]]) -> jax.Array:
        """Counts in each row, and adds up the rows of a leaf."""
        leaf, _ = self._leaf_and_start
        rows = jnp.stack(count_true(marks[0], axis=1))
        return jnp.zeros((len(rows), len(self.shapes)), jnp.int32).at[:, leaf].add(rows)


def layout_of(leaves: Sequence[Any]) -> Layout:
    """Chooses the layout of some leaves.

    On one device they are put together. With several devices they may be sharded, which
    is not known while a function is traced, and a copy into one array may gather them.

    Args:
        leaves: Arrays, or what has their shapes; at least one.

    Returns:
        The layout.
    """
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    return Rows(shapes) if on_one_device() and len(shapes) > 1 else Apart(shapes)


def on_one_device() -> bool:
    """Tells whether JAX has a single device, so that no array is sharded.

    Returns:
        Whether it has.
    """
    return jax.device_count() == 1
