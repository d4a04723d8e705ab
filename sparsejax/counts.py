"""How many weights a sparsity, a fraction or a share stands for, exact to the unit.

float32 has 24 bits: `0.9 * n` is already wrong by a unit at n of tens of millions, and
`0.3 * 50` rounds up to more than 15, so that its ceiling is 16. Sparsities are known
when a step is compiled and are multiplied in float64 on the host. The number of active
weights is known only inside the step, so fractions of it are multiplied in integers.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import is_traced

PyTree = Any

_BITS = 12  # a digit in base 4096: the product of two digits fits an int32 many times
_DIGITS = 7  # 84 bits of the fraction, so that all 53 of a float64 above 2^-31 count


def _multiply(fraction: Any, count: Any) -> tuple[jax.Array, list[jax.Array]]:
    """Multiplies a fraction in [0, 1] with a count as schoolbook long multiplication.

    With B = 4096, fraction = sum_i f_i B^-i for i = 1..7 and count = sum_j c_j B^j for
    j = 0..2, the column of B^p is sum_{j - i = p} f_i c_j; carries run upwards.

    Returns the whole part (int32) and the digits of the rest (float32, the highest
    first, each times its power of B and so exact).
    """
    base = 2**_BITS
    digits = []
    for _ in range(_DIGITS):
        fraction = fraction * base  # exact: powers of two, and the rest is subtracted
        digit = jnp.floor(fraction) if is_traced(fraction) else np.floor(fraction)
        digits.append(jnp.asarray(digit).astype(jnp.int32))
        fraction = fraction - digit
    count = jnp.asarray(count, jnp.int32)
    limbs = [count & (base - 1), (count >> _BITS) & (base - 1), count >> (2 * _BITS)]

    def column(power: int) -> jax.Array:
        pairs = [(j - power - 1, j) for j in range(3) if 0 <= j - power - 1 < _DIGITS]
        return sum((digits[i] * limbs[j] for i, j in pairs), jnp.zeros([], jnp.int32))

    carry = jnp.zeros([], jnp.int32)
    rest: list[jax.Array] = []
    for power in range(-_DIGITS, 0):
        total = column(power) + carry
        digit = (total & (base - 1)).astype(jnp.float32) * float(base) ** power
        rest = [digit, *rest]
        carry = total >> _BITS
    whole = carry + column(0) + column(1) * base
    return whole, rest


def _compare(rest: Sequence[jax.Array], power_of_two: Any) -> jax.Array:
    """Gives the sign of the rest minus a power of two, exactly.

    Summed from the highest digit, what float32 cannot hold is already too far from 0
    for the digits below to matter.
    """
    return jnp.sign(sum(rest, -jnp.float32(power_of_two)))


def keep_count(sparsity: Any, size: Any) -> Any:
    """Counts the weights that stay active: round((1 - sparsity) * size), half to even.

    Args:
        sparsity: A number or array in [0, 1). What can be read now counts as float64;
            a traced value counts as the float32 it is, so that at tens of millions of
            weights it can differ by a unit from the decimal that was meant.
        size: The number of prunable weights, an int or an array of ints.

    Returns:
        The counts: NumPy int32, or a JAX int32 array where `sparsity` is traced.

    Example:
        >>> int(keep_count(0.9, 25_502_912))
        2550291
    """
    if not is_traced(sparsity):
        density = 1 - np.asarray(sparsity, np.float64)
        return np.rint(density * np.asarray(size)).astype(np.int32)
    # The zeros are counted: 1 - sparsity would be rounded to float32.
    whole, rest = _multiply(sparsity.astype(jnp.float32), size)
    half, odd = _compare(rest, 0.5), ((size - whole) & 1).astype(bool)
    return size - whole - ((half > 0) | ((half == 0) & odd)).astype(jnp.int32)


def drop_count(fraction: Any, active: Any) -> jax.Array:
    """Counts the weights that a prune by fraction drops: ceil(fraction * active).

    Args:
        fraction: A number in [0, 1]. A Python float gives what
            `math.ceil(fraction * active)` gives in float64. For a float32 array, such
            as a schedule of the traced step, a product within 2^-23 of an integer, in
            relation to it, counts as that integer, so that 0.3 of 50 is 15, not 16.
        active: int32 array or int, the number of active weights.

    Returns:
        The counts, int32.

    Example:
        >>> drop_count(0.3, 50).item(), drop_count(0.3, 51).item()
        (15, 16)
    """
    exact = isinstance(fraction, (int, float, np.floating))
    if exact:  # however small it is, a fraction above 0 drops a weight
        fraction = max(float(fraction), 2.0**-53 if fraction > 0 else 0.0)
    else:
        fraction = jnp.asarray(fraction, jnp.float32)
    whole, rest = _multiply(fraction, active)
    # A float64 product this close above an integer is rounded to it: half a unit in the
    # last of its 53 bits, 2^(exponent - 53).
    exponent = 31 - jax.lax.clz(whole) - (53 if exact else 23)
    slack = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return whole + (_compare(rest, slack) > 0).astype(jnp.int32)


_SAME = 1024  # parts of a weight: float32 does not tell closer remainders apart


def share_out(total: Any, shares: PyTree, room: PyTree) -> PyTree:
    """Shares a number of weights out over layers, exactly and within their room.

    Each layer gets its share, rounded down. What is still missing goes one by one to
    the largest remainders, of equal ones to the earlier layer. A layer whose share
    exceeds its room gets its room, and the others share the rest in the same
    proportions; where none of them has a share, in proportion to their room.

    At tens of millions of weights a layer's count can be off its share by some units,
    as far as float32 knows the share. The total is exact always.

    Args:
        total: The number to share out, an int or an int32 scalar; may be traced.
        shares: A tree of scalars, one a layer, in any unit; what is negative or not
            finite counts as 0.
        room: A tree like it of ints, the most that each layer can take.

    Returns:
        A tree like `room` of int32 scalars that sum to `total`, or all of the room
        where that is less.

    Example:
        >>> shares, room = {"a": 5.0, "b": 2.0, "c": 2.0}, {"a": 4, "b": 9, "c": 9}
        >>> jax.tree.map(int, share_out(11, shares, room))
        {'a': 4, 'b': 4, 'c': 3}
    """
    most = jnp.stack([jnp.asarray(r, jnp.int32) for r in jax.tree.leaves(room)])
    wanted = jnp.stack([jnp.asarray(s, jnp.float32) for s in jax.tree.leaves(shares)])
    wanted = jnp.where(jnp.isfinite(wanted) & (wanted > 0), wanted, 0)
    total = jnp.minimum(jnp.asarray(total, jnp.int32), jnp.sum(most, dtype=jnp.int32))

    def quotas(full: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The share of each layer that is not full, its whole part and its rest."""
        open_shares = jnp.where(full, 0, wanted)
        open_room = jnp.where(full, 0, most).astype(jnp.float32)
        parts = jnp.where(jnp.any(open_shares > 0), open_shares, open_room)
        parts = parts / jnp.max(parts, initial=jnp.finfo(jnp.float32).tiny)
        parts = parts / jnp.maximum(jnp.sum(parts), 1)
        whole, rest = _multiply(parts, total - jnp.sum(jnp.where(full, most, 0)))
        return whole, sum(rest[::-1], jnp.zeros_like(parts))

    def more(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        full, _ = state
        now_full = full | (quotas(full)[0] >= most)
        return now_full, jnp.any(now_full != full)

    full, _ = jax.lax.while_loop(
        lambda state: state[1], more, (jnp.zeros(most.shape, bool), jnp.bool_(True))
    )
    whole, rest = quotas(full)
    counts = jnp.where(full, most, whole)
    rest = jnp.where(full, -1, jnp.round(rest * _SAME))
    rank = jnp.argsort(jnp.argsort(-rest))
    counts += (rank < total - jnp.sum(counts)) & ~full
    # Where float32 rounded the shares of many weights, some are missing or too many.
    missing, left = total - jnp.sum(counts), most - counts
    counts += jnp.clip(missing - (jnp.cumsum(left) - left), 0, left)
    counts -= jnp.clip(-missing - (jnp.cumsum(counts) - counts), 0, counts)
    each = [counts[i] for i in range(len(most))]
    return jax.tree.unflatten(jax.tree.structure(room), each)
