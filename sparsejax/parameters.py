"""Which leaves of a parameter tree are prunable, and under what rule."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.checks import check_sparsity
from sparsejax.trees import is_left_dense, leaves_with_paths, path_string

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How one leaf takes part in pruning.

    Attributes:
        prunable: Whether the leaf gets a mask at all.
        sparsity: The sparsity this leaf ends at, whatever the others do, in [0, 1).
            None lets it share the common budget. A fixed leaf still counts towards
            the overall sparsity, so the others make up for it.
        stacked: Whether the first axis stacks layers, as `flax.linen.scan` and other
            `lax.scan` models do; each slice is then a layer of its own.
    """

    prunable: bool = True
    sparsity: float | None = None
    stacked: bool = False


Setting = bool | float | LayerRule
Prunable = Callable[[str, Any], bool] | Sequence[tuple[str, Setting]] | None


def _as_rule(pattern: str, setting: Setting) -> LayerRule:
    if isinstance(setting, bool):
        return LayerRule(prunable=setting)
    if isinstance(setting, (int, float)):
        setting = LayerRule(sparsity=float(setting))
    if not isinstance(setting, LayerRule):
        raise ValueError(
            f"prunable: the setting of pattern {pattern!r} must be True, False, a "
            f"sparsity in [0, 1) or a LayerRule; got {setting!r}."
        )
    if setting.sparsity is not None:
        check_sparsity(
            f"prunable: the sparsity of pattern {pattern!r}", setting.sparsity
        )
    return setting


def compiled_patterns(
    name: str, pairs: Sequence[tuple[str, Any]], paths: Sequence[str]
) -> list[tuple[re.Pattern[str], Any]]:
    """Compiles (regex, setting) pairs, each of which must mean some parameter.

    Args:
        name: The argument's name, for the message.
        pairs: The pairs got.
        paths: The paths of all parameters.

    Returns:
        (compiled regex, setting) pairs.

    Raises:
        ValueError: If a pair is none, a regex is not valid or matches no path.
    """
    found = []
    for pair in pairs:
        try:
            pattern, setting = pair
            found.append((re.compile(pattern), setting))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"{name} must hold (regex, setting) pairs; got {pair!r}: {error}."
            ) from None
    for compiled, _ in found:
        if not any(compiled.search(path) for path in paths):
            raise ValueError(
                f"{name}: pattern {compiled.pattern!r} matches no parameter; the "
                f"paths are {', '.join(map(repr, paths))}."
            )
    return found


def _by_dimensions(leaf: Any) -> LayerRule:
    return LayerRule(prunable=leaf.ndim >= 2)


def _rule_function(
    prunable: Prunable, paths: Sequence[str]
) -> Callable[[str, Any], LayerRule]:
    if prunable is None:
        return lambda path, leaf: _by_dimensions(leaf)
    if callable(prunable):
        predicate = prunable
        return lambda path, leaf: LayerRule(prunable=bool(predicate(path, leaf)))
    if isinstance(prunable, str) or not isinstance(prunable, Sequence):
        raise ValueError(
            "prunable must be None, a function of (path, leaf) or a list of "
            f"(regex, setting) pairs; got {prunable!r}."
        )
    rules = [
        (pattern, _as_rule(pattern.pattern, setting))
        for pattern, setting in compiled_patterns("prunable", prunable, paths)
    ]

    def first_match(path: str, leaf: Any) -> LayerRule:
        for pattern, rule in rules:
            if pattern.search(path):
                return rule
        return _by_dimensions(leaf)

    return first_match


def layer_rules(params: PyTree, prunable: Prunable = None) -> PyTree:
    """Decides for every leaf whether it is prunable and under what rule.

    Args:
        params: Parameters: arrays or `jax.ShapeDtypeStruct`, of any shapes.
        prunable: None selects every leaf with two or more dimensions. A function of
            (path, leaf) selects the leaves for which it is true. A list of (regex,
            setting) pairs is searched in order for the first regex found anywhere in
            the path (`re.search`); its setting is True, False, a sparsity for this
            leaf, or a `LayerRule`. Leaves that no regex matches follow the default.

    Returns:
        A tree like `params` with a `LayerRule` at each prunable leaf and
        `optax.MaskedNode()` at each leaf left dense.

    Raises:
        ValueError: If a regex matches no path, a setting is of no known kind, a
            prunable leaf does not hold floats, or nothing is prunable.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"conv": jnp.ones((3, 3, 1, 8)), "head": jnp.ones((8, 2))}
        >>> rules = layer_rules(params, [("head", 0.5)])
        >>> rules["conv"].sparsity, rules["head"].sparsity
        (None, 0.5)
    """
    pairs = leaves_with_paths(params)
    rule_of = _rule_function(prunable, [path for path, _ in pairs])

    def decide(path: Sequence[Any], leaf: Any) -> Any:
        name = path_string(path)
        rule = rule_of(name, leaf)
        if not rule.prunable:
            return optax.MaskedNode()
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"params at {name!r} must hold floats to be prunable; got "
                f"{leaf.dtype}; exclude it with prunable=[({name!r}, False)]."
            )
        if rule.stacked and leaf.ndim < 2:
            raise ValueError(
                f"prunable: {name!r} of shape {leaf.shape} cannot be stacked layers, "
                "which need a first axis and at least one more."
            )
        return rule

    rules = jax.tree_util.tree_map_with_path(decide, params)
    if not jax.tree.leaves(rules):
        raise ValueError(
            "params hold nothing to prune: there is no leaf with two or more "
            "dimensions, or prunable excludes them; the paths are "
            f"{[path for path, _ in pairs]}."
        )
    return rules


def split_layers(tree: PyTree, rules: PyTree) -> PyTree:
    """Replaces each stacked leaf by the tuple of its layers, so one leaf is one layer.

    Args:
        tree: Parameters, gradients, masks or the rules themselves.
        rules: What `layer_rules` gave for the parameters.

    Returns:
        The tree with a tuple of slices at each leaf whose rule says it is stacked.
        Where no leaf is stacked, the tree as it is.
    """
    if not any(rule.stacked for rule in jax.tree.leaves(rules)):
        return tree

    def split(rule: Any, leaf: Any) -> Any:
        if is_left_dense(rule) or not rule.stacked:
            return leaf
        return tuple(leaf[i] for i in range(leaf.shape[0]))

    return jax.tree.map(split, rules, tree, is_leaf=is_left_dense)


def split_rules(rules: PyTree, params: PyTree) -> PyTree:
    """Gives each layer of a stacked leaf its own rule.

    Args:
        rules: What `layer_rules` gave for the parameters.
        params: The parameters.

    Returns:
        Rules in the form that `split_layers(params, rules)` has.
    """

    def split(rule: Any, leaf: Any) -> Any:
        if is_left_dense(rule) or not rule.stacked:
            return rule
        return (dataclasses.replace(rule, stacked=False),) * leaf.shape[0]

    return jax.tree.map(split, rules, params, is_leaf=is_left_dense)


def join_layers(tree: PyTree, rules: PyTree) -> PyTree:
    """Stacks again what `split_layers` took apart.

    Args:
        tree: A tree with a tuple of arrays at each stacked leaf.
        rules: The rules that `split_layers` was given.

    Returns:
        The tree with one array at each stacked leaf.
    """

    def join(rule: Any, layers: Any) -> Any:
        if is_left_dense(rule) or not rule.stacked:
            return layers
        return jnp.stack(layers)

    return jax.tree.map(join, rules, tree, is_leaf=is_left_dense)
