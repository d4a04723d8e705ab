"""What weights are grown by: a gradient, a mean of gradients, or chance.

One batch's gradient is noisy where batches are small. `gradient_steps` grows by the
mean over the steps that lead to an update, "momentum" by a running mean over all steps.
Both are the method's own memory of every weight: the momentum of an optimizer that is
wrapped knows nothing of inactive weights, and is reset for grown ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import scores
from sparsejax.checks import check_choice, check_step, is_traced
from sparsejax.schedules import Schedule
from sparsejax.transform import Memory, MemoryRule, Snapshot
from sparsejax.trees import map_masked

PyTree = Any

GROWTHS = ("gradient", "momentum", "random")


class Growth(NamedTuple):
    """How a method chooses the weights that it grows.

    Attributes:
        score: A function (`Snapshot`, masks) -> scores; those of highest magnitude are
            grown.
        memory: What the scores need to be remembered, for `Method.memory`.
    """

    score: Callable[[Snapshot, PyTree], PyTree]
    memory: MemoryRule | None = None


def _zeros(params: PyTree, rules: PyTree) -> PyTree:
    """Sums of many gradients are kept in float32 or wider."""

    def zeros(rule: Any, leaf: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.zeros_like(leaf, dtype=dtype)

    return map_masked(zeros, rules, params)


def momentum_memory(momentum: float) -> MemoryRule:
    """Remembers m <- alpha m + (1 - alpha) dL/dw of every weight, inactive ones too.

    Args:
        momentum: alpha, in [0, 1).

    Returns:
        The rule; the running mean is the slot "momentum".

    Raises:
        ValueError: If alpha is out of range.
    """
    if not is_traced(momentum) and not 0 <= momentum < 1:
        raise ValueError(
            "momentum must be in [0, 1), how much of the running mean of gradients "
            f"stays at a step; got {momentum}."
        )

    def observe(now: Snapshot) -> dict[str, PyTree]:
        def blend(rule: Any, mean: jax.Array, grad: jax.Array) -> jax.Array:
            return momentum * mean + (1 - momentum) * grad.astype(mean.dtype)

        slots = now.memory.slots
        return {"momentum": map_masked(blend, now.rules, slots["momentum"], now.grads)}

    return MemoryRule(
        init=lambda params, rules: Memory(slots={"momentum": _zeros(params, rules)}),
        observe=observe,
    )


def gradient_sum_memory(steps: int, is_update_step: Schedule) -> MemoryRule:
    """Remembers the sum of the gradients of the last steps up to each update.

    Args:
        steps: How many steps, the update step the last of them. Gradients from before
            the previous update do not count.
        is_update_step: A function step -> bool, which also takes an array of steps.

    Returns:
        The rule; the sum is the slot "gradient_sum". It ranks like the mean.
    """

    def observe(now: Snapshot) -> dict[str, PyTree]:
        counts = jnp.any(is_update_step(now.step + jnp.arange(steps)))

        def add(rule: Any, total: jax.Array, grad: jax.Array) -> jax.Array:
            return total + jnp.where(counts, grad.astype(total.dtype), 0)

        total = now.memory.slots["gradient_sum"]
        return {"gradient_sum": map_masked(add, now.rules, total, now.grads)}

    def init(params: PyTree, rules: PyTree) -> Memory:
        return Memory(slots={"gradient_sum": _zeros(params, rules)})

    return MemoryRule(init, observe, forgets=True)


def growth_by(
    grow: str,
    is_update_step: Schedule,
    update_interval: int,
    *,
    gradient_steps: int = 1,
    momentum: float = 0.9,
) -> Growth:
    """Gives the growth of a name.

    Args:
        grow: "gradient" ranks by |dL/dw|, "momentum" by its running mean's magnitude,
            "random" draws.
        is_update_step: When weights are grown.
        update_interval: Steps between updates.
        gradient_steps: With "gradient", rank by the magnitude of the mean gradient over
            the last so many steps, from 1 to `update_interval`.
        momentum: With "momentum", alpha in [0, 1).

    Returns:
        The score and the memory that it needs.

    Raises:
        ValueError: If the name is unknown or a number is out of range.
    """
    check_choice("grow", grow, GROWTHS)
    check_step("gradient_steps", gradient_steps, 1)
    if gradient_steps > (update_interval if grow == "gradient" else 1):
        raise ValueError(
            "gradient_steps must be 1, or with grow='gradient' up to update_interval="
            f"{update_interval}; got {gradient_steps} with {grow=}."
        )
    memory = momentum_memory(momentum)
    if grow == "random":
        return Growth(lambda now, masks: scores.random(now.key, masks))
    if grow == "momentum":
        return Growth(
            lambda now, masks: now.memory.slots["momentum"],
            memory,
        )
    if gradient_steps == 1:
        return Growth(lambda now, masks: now.grads)
    return Growth(
        lambda now, masks: now.memory.slots["gradient_sum"],
        gradient_sum_memory(gradient_steps, is_update_step),
    )
