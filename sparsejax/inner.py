"""The inner optimizer's step on masked gradients, such that XLA fuses it whole."""

from typing import Any

import jax
import optax
from jax.extend.core import Literal

from sparsejax.checks import is_traced
from sparsejax.masks import apply_masks, choose
from sparsejax.trees import is_left_dense

PyTree = Any


def masked_update(
    inner: optax.GradientTransformationExtraArgs,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    masks: PyTree,
    **extra_args: Any,
) -> tuple[PyTree, PyTree]:
    """Runs an optimizer on masked gradients and masked parameters.

    Where the optimizer uses the gradient twice, once for a slot and once beside that
    slot, as Nesterov's momentum does, XLA's CPU backend writes the masked gradient out
    as an array of its own: that takes as long as the step itself, and a copy of the
    weights in memory. So in a compiled step the gradient is masked at each of its uses,
    by 0.0 and -0.0 in turns, which no compiler may take for one and the same.

    Args:
        inner: The optimizer.
        grads: Dense gradients.
        state: The optimizer's state.
        params: Parameters.
        masks: A mask tree: where it is False, the optimizer sees 0 for both.
        **extra_args: Further arguments of its update.

    Returns:
        (updates, state) as from `inner.update`.
    """
    masked = apply_masks(params, masks)

    def update(grads: PyTree) -> tuple[PyTree, PyTree]:
        return inner.update(grads, state, masked, **extra_args)

    if not any(map(is_traced, jax.tree.leaves(grads))):
        return update(apply_masks(grads, masks))
    closed, shapes = jax.make_jaxpr(update, return_shape=True)(grads)
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts))
    structure: Any = jax.tree.structure(grads)
    layers = zip(jax.tree.leaves(grads), structure.flatten_up_to(masks))
    dense = dict(zip(jaxpr.invars, layers, strict=True))
    uses = dict.fromkeys(dense, 0)

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        if atom not in dense:
            return known[atom]
        grad, mask = dense[atom]
        if is_left_dense(mask):
            return grad
        uses[atom] += 1
        zero = 0.0 if uses[atom] % 2 else -0.0
        return choose(mask, grad, zero)

    for equation in jaxpr.eqns:
        primitive = equation.primitive
        options = primitive.get_bind_params(equation.params)
        found = primitive.bind(*map(read, equation.invars), **options)
        found = found if primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found))
    return jax.tree.unflatten(jax.tree.structure(shapes), map(read, jaxpr.outvars))
