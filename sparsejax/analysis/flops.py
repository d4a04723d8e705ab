"""FLOPs of a forward pass, parameter by parameter, read off its jaxpr.

One convention everywhere: a multiply-add is two FLOPs, and only multiply-adds count,
those of matrix products and convolutions. Sums, norms, activations, pooling, Fourier
transforms and factorizations count nothing. So RigL's ResNet-50 (arXiv 1911.11134), of
4.1e9 multiply-adds, has 8.2e9 FLOPs.

Taps of a convolution on its padding count, as in published figures; so each weight of a
layer costs the same, and a mask of density d leaves exactly d of the layer's FLOPs.
Taps on the zeros that `lhs_dilation` puts between inputs (transposed convolutions) are
known not to be needed and do not count; nor do taps between those on the padding.

No annotations are needed: an operand belongs to the parameter that it was made from,
without the inputs, by anything but a product or a reduction: casts, transposes,
reshapes, slices, masks, scales, `lax.scan` over stacked layers. Zeros are taken to stay
zeros on the way; what adds to a weight is overlooked.

Masks simulate sparsity: these are the FLOPs that hardware would need that skips every
zero. The products that run here are dense.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from sparsejax.trees import mask_leaves, path_string

PyTree = Any

# What a value is made from: None if it depends on the inputs, else how many of its
# weights come from each parameter, by path; {} for constants.
Origin = dict[str, int] | None
# FLOPs by the path of the parameter, and at None what belongs to no parameter.
Cost = Counter[str | None]

_CALLS = {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
    "jit",
    "pjit",
    "remat",
    "remat2",
}
_FOREIGN = {"ffi_call", "pure_callback"}
_ONE_TO_ONE = {"device_put", "optimization_barrier"}
_PARTS = {"dynamic_slice", "gather", "slice", "split"}
_UNIONS = {"concatenate", "dynamic_update_slice"}


class ForwardFlops(NamedTuple):
    """FLOPs of a forward pass; a multiply-add is two.

    Attributes:
        by_parameter: FLOPs of the products with each parameter, by its path; 0 for
            parameters that only add or scale.
        other: FLOPs of products that belong to no one parameter: of activations with
            each other, as in attention, or of parameters with each other.
    """

    by_parameter: dict[str, int]
    other: int

    @property
    def total(self) -> int:
        """All FLOPs of the dense forward pass."""
        return sum(self.by_parameter.values()) + self.other


def forward_flops(
    apply: Callable[..., Any], params: PyTree, *inputs: Any
) -> ForwardFlops:
    """Counts the FLOPs of a function of parameters and inputs; nothing is computed.

    What is traced counts, also where its result is not used. Of the branches of a
    `lax.cond` or `lax.switch` the most expensive counts. Weights that are chosen or
    scaled by the inputs (a gather of experts, a hypernetwork) belong to no parameter;
    those of `lax.ragged_dot` do. Where parameters are concatenated or added up before a
    product, they share its FLOPs in proportion to their weights.

    Args:
        apply: A function of the parameters and the inputs that JAX can trace, such as a
            Flax module's `apply`. Masks that it closes over, or gets as a bool input,
            are looked through.
        params: Any tree of arrays or `jax.ShapeDtypeStruct`.
        *inputs: Trees of arrays or `jax.ShapeDtypeStruct`. The FLOPs are those of this
            batch: give a batch of one for the FLOPs of one example.

    Returns:
        The FLOPs by parameter, exact ints.

    Raises:
        ValueError: If FLOPs cannot be known: products inside a `lax.while_loop`, whose
            trips depend on values, or inside a kernel or primitive of unknown meaning.

    Example:
        >>> params = {"kernel": np.zeros((3, 3, 4, 8)), "head": np.zeros((8, 10))}
        >>> def apply(params, x):
        ...     y = jax.lax.conv_general_dilated(
        ...         x, params["kernel"], (1, 1), "SAME",
        ...         dimension_numbers=("NHWC", "HWIO", "NHWC"))
        ...     return jax.nn.relu(y).mean((1, 2)) @ params["head"]
        >>> image = jax.ShapeDtypeStruct((1, 5, 5, 4), np.dtype("float32"))
        >>> forward_flops(apply, params, image)
        ForwardFlops(by_parameter={'head': 160, 'kernel': 14400}, other=0)
    """
    jaxpr = jax.make_jaxpr(apply)(params, *inputs).jaxpr
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_string(path) for path, _ in leaves]
    origins: list[Origin] = [None for _ in jaxpr.invars]
    for i, variable in enumerate(jaxpr.invars):
        if getattr(variable.aval, "dtype", None) == np.dtype(bool):  # a mask
            origins[i] = {}
        elif i < len(paths):
            origins[i] = {paths[i]: _size(variable)}
    cost = _walk(jaxpr, origins)[1]
    return ForwardFlops({path: cost[path] for path in paths}, cost[None])


def layer_densities(masks: PyTree) -> dict[str, Fraction]:
    """Returns the density of each masked leaf, exactly.

    Args:
        masks: A mask tree of concrete arrays.

    Returns:
        active / size by path; a leaf that stacks layers counts as one.

    Raises:
        ValueError: If the tree holds no mask.

    Example:
        >>> layer_densities({"w": np.array([True, False, False])})
        {'w': Fraction(1, 3)}
    """
    return {
        path: Fraction(int(np.count_nonzero(mask)), max(mask.size, 1))
        for path, mask in mask_leaves(masks).items()
    }


def inference_flops(
    flops: ForwardFlops, densities: Mapping[str, float | Fraction]
) -> float:
    """Scales the FLOPs of each layer by its density: what a sparse forward pass needs.

    Args:
        flops: The dense forward pass, of `forward_flops`.
        densities: Densities in [0, 1] by path, as `layer_densities` gives them;
            parameters that are left out are dense.

    Returns:
        FLOPs, an int where the products are whole. Masks simulate sparsity: this is
        what hardware would need that skips every zero.

    Raises:
        ValueError: If a path is not that of a parameter, or a density not in [0, 1].

    Example:
        >>> flops = ForwardFlops({"w": 1200, "head": 160}, other=40)
        >>> inference_flops(flops, {"w": Fraction(1, 10)})
        320
    """
    for path, density in densities.items():
        if path not in flops.by_parameter:
            raise ValueError(
                f"densities must be of parameters that flops has; got {path!r}, and "
                f"the paths are {', '.join(map(repr, flops.by_parameter))}."
            )
        if not 0 <= density <= 1:
            raise ValueError(
                f"densities must be in [0, 1], the fraction of weights that are "
                f"active; got {density} at {path!r}."
            )
    exact = sum(
        count * Fraction(densities.get(path, 1))
        for path, count in flops.by_parameter.items()
    )
    return plain(exact + flops.other)


def plain(number: float | Fraction) -> float:
    """Makes a fraction the int it stands for, or else a float.

    Args:
        number: Any real number.

    Returns:
        An int where the number is whole.
    """
    return int(number) if number == int(number) else float(number)


def _shape(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


def _size(atom: Any) -> int:
    return math.prod(_shape(atom))


def _opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _walk(
    jaxpr: Jaxpr | ClosedJaxpr, origins: Sequence[Origin]
) -> tuple[list[Origin], Cost]:
    """Follows a jaxpr: what its outputs are made from, and its FLOPs."""
    jaxpr = _opened(jaxpr)
    known: dict[Any, Origin] = {constant: {} for constant in jaxpr.constvars}
    known.update(zip(jaxpr.invars, origins, strict=True))
    cost: Cost = Counter()

    def read(atom: Any) -> Origin:
        return {} if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        outputs, spent = _equation(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, outputs, strict=True))
        cost.update(spent)
    return [read(atom) for atom in jaxpr.outvars], cost


def _equation(eqn: JaxprEqn, origins: list[Origin]) -> tuple[list[Origin], Cost]:
    name = eqn.primitive.name
    if name in _CALLS:
        (body,) = _bodies(eqn)
        return _walk(body, origins)
    if name == "scan":
        return _scan(eqn, origins)
    if name == "cond":
        return _cond(eqn, origins)
    flops = _product_flops(eqn)
    if flops is not None:
        depends = None in origins[:2]
        return [None if depends else {}], _charge(flops, origins[0], origins[1])
    if name in _FOREIGN or any(map(_has_product, _bodies(eqn))):
        raise ValueError(
            "apply must be made of primitives of known FLOPs; got a product inside "
            f"{name!r}, whose FLOPs cannot be read off; write loops with lax.scan, or "
            "lax.fori_loop between Python ints, and kernels as plain JAX."
        )
    return _moved(eqn, origins), Counter()


def _bodies(eqn: JaxprEqn) -> Iterator[Any]:
    """Finds the jaxprs among the parameters of an equation."""

    def find(thing: Any) -> Iterator[Any]:
        if isinstance(thing, (Jaxpr, ClosedJaxpr)):
            yield thing
        elif isinstance(thing, (tuple, list)):
            for part in thing:
                yield from find(part)

    yield from find(list(eqn.params.values()))


def _has_product(body: Any) -> bool:
    return any(
        eqn.primitive.name in _FOREIGN
        or _product_flops(eqn) is not None
        or any(map(_has_product, _bodies(eqn)))
        for eqn in _opened(body).eqns
    )


def _count_stacks(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    pairs = zip(outside, inside, strict=True)
    return sum(len(_shape(out)) > len(_shape(one)) for out, one in pairs)


def _scan(eqn: JaxprEqn, origins: list[Origin]) -> tuple[list[Origin], Cost]:
    (body,) = _bodies(eqn)
    length, inner = eqn.params["length"], _opened(body)
    # Operands are constants, carries and stacks of slices, results are carries and
    # stacks. Shapes tell how many: how the parameters do depends on JAX's version.
    stacks = _count_stacks(eqn.invars, inner.invars)
    carried = len(eqn.outvars) - _count_stacks(eqn.outvars, inner.outvars)
    held = len(eqn.invars) - stacks - carried
    constants, carry = origins[:held], origins[held : held + carried]
    slices = [_scaled(origin, 1, length) for origin in origins[held + carried :]]
    while True:  # ends: what changes on the way round depends on the loop, for good
        outputs, cost = _walk(body, [*constants, *carry, *slices])
        settled = [o if o == new else None for o, new in zip(carry, outputs)]
        if settled == carry:
            break
        carry = settled
    stacked = [_scaled(origin, length, 1) for origin in outputs[carried:]]
    return [*carry, *stacked], Counter({p: length * n for p, n in cost.items()})


def _cond(eqn: JaxprEqn, origins: list[Origin]) -> tuple[list[Origin], Cost]:
    walked = [_walk(branch, origins[1:]) for branch in _bodies(eqn)]
    outputs = [_merged(column, max) for column in zip(*(out for out, _ in walked))]
    return outputs, max((cost for _, cost in walked), key=lambda c: sum(c.values()))


def _product_flops(eqn: JaxprEqn) -> int | None:
    """Counts the FLOPs of a product of two arrays; None for anything else."""
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        return _convolution_flops(eqn)
    groups = 1
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
    elif name == "ragged_dot_general":
        ragged = eqn.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = ragged.dot_dimension_numbers
        if ragged.lhs_ragged_dimensions[0] in contracted:
            # The groups, a result each, share out the terms of the sums (gradients).
            groups = _shape(eqn.invars[2])[-1]
    else:
        return None
    length = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return 2 * _size(eqn.outvars[0]) * length // groups


def _convolution_flops(eqn: JaxprEqn) -> int:
    kernel, out = _shape(eqn.invars[1]), _shape(eqn.outvars[0])
    spec = eqn.params["dimension_numbers"]
    batch, features, *space = (out[axis] for axis in spec.out_spec)
    _, fan_in, *window = (kernel[axis] for axis in spec.rhs_spec)
    taps = 1
    for axis, (places, size) in enumerate(zip(space, window)):
        # Output o reaches by tap t the place s o + d t - p of the inputs spread out.
        starts = eqn.params["window_strides"][axis] * np.arange(places)
        offsets = eqn.params["rhs_dilation"][axis] * np.arange(size)
        reached = np.add.outer(starts - eqn.params["padding"][axis][0], offsets)
        needed = reached % eqn.params["lhs_dilation"][axis] == 0
        taps *= int(np.count_nonzero(needed))
    # With groups, fan_in is one group's, and each feature is computed once.
    return 2 * batch * features * fan_in * taps


def _charge(flops: int, lhs: Origin, rhs: Origin) -> Cost:
    """Charges a product to the parameter that is one of its operands."""
    owners = lhs or rhs
    if not owners or (lhs and rhs):
        return Counter({None: flops})
    total, reached, charged = sum(owners.values()), 0, 0
    cost: Cost = Counter()
    for path, weights in owners.items():  # rounded so that the shares add up
        reached += weights
        cost[path] = flops * reached // total - charged
        charged += cost[path]
    return cost


def _moved(eqn: JaxprEqn, origins: list[Origin]) -> list[Origin]:
    """Returns what the results of anything but a product are made from."""
    name = eqn.primitive.name
    if name in _ONE_TO_ONE:
        return origins
    if None in origins:
        return [None for _ in eqn.outvars]
    if name in _UNIONS:
        return [_merged(origins, lambda counts: sum(counts))]
    # Of weights and their scale, mask or mean, the weights are the most.
    sizes = list(map(_size, eqn.invars))
    weights = [min(sum(o.values()), n) for o, n in zip(origins, sizes) if o is not None]
    most, whole = max(weights, default=0), max(sizes, default=0)
    owners = _merged([o for o, n in zip(origins, weights) if n == most], max)
    moved: list[Origin] = []
    for size in map(_size, eqn.outvars):
        is_reduction = size < whole and name not in _PARTS
        moved.append({} if is_reduction else _scaled(owners, min(size, whole), whole))
    return moved


def _merged(
    origins: Sequence[Origin], together: Callable[[Sequence[int]], int]
) -> Origin:
    merged: dict[str, list[int]] = {}
    for origin in origins:
        if origin is None:
            return None
        for path, count in origin.items():
            merged.setdefault(path, []).append(count)
    return {path: together(counts) for path, counts in merged.items()}


def _scaled(origin: Origin, times: int, over: int) -> Origin:
    if origin is None:
        return None
    return {path: max(n * times // max(over, 1), 1) for path, n in origin.items()}
