"""How many weights a sparsity or a fraction stands for, exact to the unit.

float32 has 24 bits: `0.9 * n` is already wrong by a unit at n of tens of millions, and
`0.3 * 50` rounds up to more than 15, so that its ceiling is 16. Sparsities are known
when a step is compiled and are multiplied in float64 on the host. The number of active
weights is known only inside the step, so fractions of it are multiplied in integers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax.checks import is_traced

_BITS = 12  # a digit in base 4096: the product of two digits fits an int32 many times
_DIGITS = 6  # 72 bits of the fraction, so that all 53 of a float64 above 2e-6 count


def _multiply(fraction: Any, count: Any) -> tuple[jax.Array, jax.Array]:
    """Multiplies a fraction in [0, 1] with a count as schoolbook long multiplication.

    With B = 4096, fraction = sum_i f_i B^-i for i = 1..6 and count = sum_j c_j B^j for
    j = 0..2, the column of B^p is sum_{j - i = p} f_i c_j; carries run upwards.

    Returns the whole part (int32) and the rest in [0, 1) (float32, precise relative to
    itself: the leading digits of a small rest are zero).
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

    carry, rest = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32)
    for power in range(-_DIGITS, 0):
        total = column(power) + carry
        rest = rest + (total & (base - 1)).astype(jnp.float32) * float(base) ** power
        carry = total >> _BITS
    whole = carry + column(0) + column(1) * base
    return whole, rest


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
    whole, rest = _multiply(1 - sparsity.astype(jnp.float32), size)
    odd = (whole & 1).astype(bool)
    return whole + ((rest > 0.5) | ((rest == 0.5) & odd)).astype(jnp.int32)


def drop_count(fraction: Any, active: Any) -> jax.Array:
    """Counts the weights that a prune by fraction drops: ceil(fraction * active).

    Args:
        fraction: A number in [0, 1]. A Python float gives what
            `math.ceil(fraction * active)` gives in float64. For a float32 array, such
            as a schedule of the traced step, a product within 2^-21 of an integer
            counts as that integer, so that 0.3 of 50 is 15 and not 16.
        active: int32 array or int, the number of active weights.

    Returns:
        The counts, int32.

    Example:
        >>> drop_count(0.3, 50).item(), drop_count(0.3, 51).item()
        (15, 16)
    """
    exact = isinstance(fraction, (int, float, np.floating))
    if not exact:
        fraction = jnp.asarray(fraction, jnp.float32)
    whole, rest = _multiply(np.float64(fraction) if exact else fraction, active)
    # A float64 product this close above an integer is rounded to it: half a unit in the
    # last of its 53 bits, 2^(exponent - 53).
    exponent = 31 - jax.lax.clz(whole) - (53 if exact else 21)
    slack = jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return whole + (rest > slack).astype(jnp.int32)
