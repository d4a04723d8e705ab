"""Chains: a method is a sequence of mask updates, each a pure function of a context.

    GraNet  chain(prune(magnitude, to=cubic), drop_and_grow(fraction=cosine))
    RigL    drop_and_grow(drop=magnitude, grow=gradient, fraction=cosine)
    SET     chain(drop(magnitude, fraction=0.3), grow(random))

Each element sees the masks that the one before has left, and returns masks. A weight
goes on, with its value and optimizer state, if it is active before the chain and after
every element of it. All others that end up active are new: they start from 0 with fresh
optimizer state. So what `chain(drop, grow)` drops and grows again restarts, while
`drop_and_grow`, one element, lets it go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsejax import scores
from sparsejax.checks import (
    SCOPES,
    check_choice,
    check_fraction,
    check_setting,
    check_sparsity,
)
from sparsejax.counts import dropped_of, kept_of, value_at, wide
from sparsejax.schedules import Setting
from sparsejax.scores import Context, Score, no_memory
from sparsejax.topology import count_by_layer, take

PyTree = Any
ScoreLike = Score | Callable[[Context], PyTree]


class Element(NamedTuple):
    """A step from masks to masks; a plain function `Context` -> masks is one, too.

    Attributes:
        apply: `Context` -> masks, or (masks, memory) where `changes_memory`.
        init: (params, rules) -> memory, as in `Score`.
        update: `Context` -> memory, called at every step, as in `Score`.
        settings: Numbers or schedules that it depends on: where one is NaN, masks stay.
        changes_memory: Whether `apply` returns (masks, memory); scalars, say.
    """

    apply: Callable[[Context], Any]
    init: Callable[[PyTree, PyTree], PyTree] = no_memory
    update: Callable[[Context], PyTree] | None = None
    settings: tuple[Setting, ...] = ()
    changes_memory: bool = False


ElementLike = Element | Callable[[Context], PyTree] | tuple[Element, ...]


def chain(*elements: ElementLike) -> tuple[Element, ...]:
    """Chains mask updates: a weight goes on if it is active after each of them.

    Args:
        *elements: Elements, functions `Context` -> masks, or chains.

    Returns:
        The elements, for `Method.update`.

    Raises:
        ValueError: If something else is among them.

    Example:
        >>> update = chain(drop(scores.magnitude, fraction=0.3), grow(scores.random))
        >>> len(update)
        2
    """
    found: list[Element] = []
    for element in elements:
        if isinstance(element, Element):
            found.append(element)
        elif isinstance(element, tuple):
            found.extend(chain(*element))
        elif callable(element):
            found.append(Element(element))
        else:
            raise ValueError(
                "a chain must hold elements, such as prune(...), or functions of a "
                f"Context that return masks; got {element!r}."
            )
    return tuple(found)


def as_score(name: str, score: Any) -> Score:
    """Returns a score, or a function of the context as one.

    Args:
        name: The argument's name, for the message.
        score: A `Score`, or a function `Context` -> a tree like the masks.

    Returns:
        The score.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(score, Score):
        return score
    if not callable(score):
        raise ValueError(
            f"{name} must be a score, such as sparsejax.scores.gradient, or a function "
            f"of a Context; got {score!r}."
        )
    return Score(score)


def prune(
    score: ScoreLike,
    *,
    to: Setting | None = None,
    fraction: Setting | None = None,
    keep: Callable[[Context], PyTree] | None = None,
    scope: str = "global",
    final: float | None = None,
) -> Element:
    """Drops the active weights of lowest score; give one of the three amounts.

    Args:
        score: What to rank by.
        to: Overall sparsity in [0, 1), a number or a schedule: round((1 - s) n) stay.
        fraction: The share of each layer's active weights that goes, a number or a
            schedule: ceil(fraction * active).
        keep: A function `Context` -> how many stay in each layer, a tree like the
            masks.
        scope: With `to`, "global" ranks all layers together, "layer" each by itself.
        final: Where a schedule `to` ends. Layers of a sparsity of their own follow the
            same curve to it, and the others make up for them. None: they are there from
            the first update on.

    Returns:
        The element.

    Raises:
        ValueError: If not exactly one amount is given, or one is out of range.

    Example:
        >>> update = prune(scores.magnitude, to=0.9, scope="layer")
    """
    check_choice("scope", scope, SCOPES)
    if (to is not None) + (fraction is not None) + (keep is not None) != 1:
        raise ValueError(
            "prune needs exactly one of to, fraction and keep; got "
            f"{to=}, {fraction=}, {keep=}."
        )
    score = as_score("score", score)
    if to is not None:
        check_setting("to", to, check_sparsity)
    if fraction is not None:
        check_setting("fraction", fraction, check_fraction)

    def apply(ctx: Context) -> PyTree:
        of, groups = score.of(ctx), _by_layer(ctx)
        if keep is not None:
            return take(of, ctx.masks, _stacked(keep(ctx)), groups, score.rank)
        with wide():
            if to is not None:
                k, groups = _targets(ctx, to, scope, final)
            else:
                active = count_by_layer(ctx.masks)
                k = active - dropped_of(value_at(fraction, ctx.step), active)
            return take(of, ctx.masks, k, groups, score.rank)

    settings = tuple(s for s in (to, fraction) if s is not None)
    return Element(apply, score.init, score.update, settings)


def drop(score: ScoreLike, *, fraction: Setting) -> Element:
    """Drops a fraction of each layer's active weights, those of lowest score.

    Args:
        score: What to rank by.
        fraction: In (0, 1), a number or a schedule: ceil(fraction * active) go.

    Returns:
        The element.

    Raises:
        ValueError: If the fraction is out of range.
    """
    return prune(score, fraction=fraction)


def grow(
    score: ScoreLike, *, count: Callable[[Context], PyTree] | None = None
) -> Element:
    """Activates the inactive weights of highest score, equal ones at random.

    Args:
        score: What to rank by.
        count: A function `Context` -> how many grow in each layer, a tree like the
            masks; None for as many as the elements before have dropped.

    Returns:
        The element.
    """
    score = as_score("score", score)

    def apply(ctx: Context) -> PyTree:
        if count is None:
            k = jnp.maximum(count_by_layer(ctx.before) - count_by_layer(ctx.masks), 0)
        else:
            k = _stacked(count(ctx))
        of, groups = score.of(ctx), _by_layer(ctx)
        return take(of, ctx.masks, k, groups, score.rank, grow=True, key=ctx.key)

    return Element(apply, score.init, score.update)


def drop_and_grow(
    drop: ScoreLike = scores.magnitude,
    grow: ScoreLike = scores.gradient,
    *,
    fraction: Setting,
) -> Element:
    """Drops a fraction of each layer's active weights and grows as many.

    Also weights just dropped may grow: as this is one element, they go on as if they
    had never been away, as in the official codes of RigL, GraNet, ITOP and SNFS.

    Args:
        drop: The lowest of these are dropped.
        grow: The highest of these, among what is not kept, are grown.
        fraction: In (0, 1), a number or a schedule: ceil(fraction * active) go.

    Returns:
        The element.

    Raises:
        ValueError: If the fraction is out of range.
    """
    drop, grow = as_score("drop", drop), as_score("grow", grow)
    check_setting("fraction", fraction, check_fraction)

    def apply(ctx: Context) -> PyTree:
        groups, (to_drop, to_grow) = _by_layer(ctx), ctx.memory
        losing = drop.of(ctx._replace(memory=to_drop))
        gaining = grow.of(ctx._replace(memory=to_grow))
        with wide():
            active = count_by_layer(ctx.masks)
            n = dropped_of(value_at(fraction, ctx.step), active)
            kept = take(losing, ctx.masks, active - n, groups, drop.rank)
            return take(gaining, kept, n, groups, grow.rank, grow=True, key=ctx.key)

    def init(params: PyTree, rules: PyTree) -> PyTree:
        return drop.init(params, rules), grow.init(params, rules)

    def update(ctx: Context) -> PyTree:
        memories = zip((drop, grow), ctx.memory)
        return tuple(updated(score, ctx._replace(memory=m)) for score, m in memories)

    is_updated = drop.update or grow.update
    return Element(apply, init, update if is_updated else None, (fraction,))


def updated(part: Any, ctx: Context) -> PyTree:
    """Returns the memory of a score or an element after a step.

    Args:
        part: The score or element.
        ctx: What it sees, its memory included.

    Returns:
        The new memory.
    """
    return ctx.memory if part.update is None else part.update(ctx)


def _by_layer(ctx: Context) -> range:
    return range(len(jax.tree.leaves(ctx.masks)))


def _stacked(counts: PyTree) -> jax.Array:
    return jnp.stack([jnp.asarray(n, jnp.int32) for n in jax.tree.leaves(counts)])


def _targets(ctx: Context, to: Setting, scope: str, final: float | None) -> Any:
    """How many weights of each group stay, and the group of each layer."""
    sparsity, progress = value_at(to, ctx.step), jnp.float64(1.0)
    if final is not None:
        progress = sparsity / jnp.maximum(final, jnp.finfo(jnp.float32).tiny)
    layers = list(zip(jax.tree.leaves(ctx.masks), jax.tree.leaves(ctx.rules)))
    alone: list[jax.Array] = []
    groups: list[int] = []
    total = room = 0
    for mask, rule in layers:
        total += mask.size
        if rule.sparsity is None:
            groups.append(-1)  # the last group, of those that share
            room += mask.size
        else:
            groups.append(len(alone))
            alone.append(kept_of(rule.sparsity * progress, mask.size))
    if not room:
        return jnp.stack(alone), groups
    shared = jnp.maximum(kept_of(sparsity, total) - sum(alone), 0)
    if scope == "global":
        return jnp.stack([*alone, shared]), np.array(groups) % (len(alone) + 1)
    k = []
    for (mask, _), group in zip(layers, groups):
        rest = 1 - shared / room if alone else sparsity
        k.append(kept_of(rest, mask.size) if group < 0 else alone[group])
    return jnp.stack(k), range(len(k))
