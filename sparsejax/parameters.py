"""Which leaves of a parameter tree are prunable, and under what rule."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.checks import check_sparsity
from sparsejax.trees import is_float, is_left_dense, leaves_with_paths, path_string

PyTree = Any
Axes = tuple[int, ...]

# Last names of a path, in lower case, by what is not a kernel: those of Flax linen and
# NNX, Haiku, Equinox and the usual vision and language transformers.
_NAMES = {
    "a bias": r"(.*_)?bias(es|_.*)?|offset|beta|shift",
    "a norm's scale": r"(.*_)?scale|gamma|(layer|batch|group|rms|instance)?_?norm",
    "an embedding": r"(.*_)?embed(ding)?s?(_.*)?|wte|wpe|(.*_)?pos_?emb(ed)?",
    "a position or class token": r"(.*_)?(tokens?|cls)|pos(ition)?s?|pos(ition)?al",
}
# The same of the module that holds a leaf named "weight", "w" or the like, which in
# Equinox and Haiku is a kernel elsewhere.
_MODULES = {
    "a norm's scale": r"(.*_)?(norm|ln|bn|gn)(_?\d+|_f)?|norm_.*|ln_.*|\w*norm",
    "an embedding": r"(?!patch)(.*_)?embed(d(ing|er))?s?(_?\d+)?|wte|wpe",
}
_GENERIC = {"weight", "w", "weights"}
_KERNELS = {*_GENERIC, "kernel"}


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
        inputs: The axes of a layer's kernel (of a slice, where layers are stacked) that
            are its inputs. None takes those of Flax and Haiku, (..., in, out), of
            Flax's attention, and of Equinox, (out, in, ...).
        outputs: The axes that are its outputs, or neurons; None likewise.
    """

    prunable: bool = True
    sparsity: float | None = None
    stacked: bool = False
    inputs: Axes | None = None
    outputs: Axes | None = None

    def axes(self, ndim: int) -> tuple[Axes, Axes]:
        """Returns the axes of inputs and of outputs of a layer's kernel.

        Args:
            ndim: The number of the kernel's axes.

        Returns:
            (inputs, outputs), each ascending from 0; other axes are positions of a
            convolution.
        """
        inputs = (-2,) if self.inputs is None else self.inputs
        outputs = (-1,) if self.outputs is None else self.outputs
        every = range(-ndim, ndim)
        outputs = tuple(sorted({a % ndim for a in outputs if a in every}))
        sides = {a % ndim for a in inputs if a in every} - set(outputs)
        return tuple(sorted(sides)), outputs


Setting = bool | float | LayerRule
Prunable = Callable[[str, Any], bool] | Sequence[tuple[str, Setting]] | None


def kernel_axes(path: Sequence[Any] | str, ndim: int) -> tuple[Axes, Axes]:
    """Returns which axes of a kernel are its inputs and outputs, by its path.

    Args:
        path: The path of a leaf, as `jax.tree_util` returns it, or as text.
        ndim: The number of the kernel's axes.

    Returns:
        (inputs, outputs), as in `LayerRule`: those of Flax's attention for a leaf named
        query, key, value or out with three axes, of Equinox for an attribute `weight`,
        and otherwise the last two.

    Example:
        >>> kernel_axes("attention/query/kernel", 3), kernel_axes("conv/kernel", 4)
        (((0,), (1, 2)), ((2,), (3,)))
    """
    names = path if isinstance(path, str) else path_string(path)
    *modules, last = names.split("/")
    module = modules[-1] if last in _KERNELS and modules else last
    if ndim == 3 and module in ("query", "key", "value"):
        return (0,), (1, 2)
    if ndim == 3 and module == "out":
        return (0, 1), (2,)
    is_attribute = not isinstance(path, str) and any(
        isinstance(key, jax.tree_util.GetAttrKey) for key in path[-1:]
    )
    if is_attribute and last.startswith("weight") and ndim >= 2:
        return (1,), (0,)
    return LayerRule().axes(ndim)


def why_dense(path: str, leaf: Any) -> str | None:
    """Returns why the default rule leaves a leaf dense.

    Args:
        path: Its path as text.
        leaf: The leaf.

    Returns:
        The reason in a few words; None for a kernel, which is prunable: floats with two
        or more axes longer than 1, and no name of a bias, norm scale, embedding or
        token.

    Example:
        >>> why_dense("norm/scale", jnp.ones((12, 64)))
        "a norm's scale"
    """
    if not is_float(leaf):
        return "no array of floats"
    *modules, last = path.lower().split("/")
    for reason, names in _NAMES.items():
        if re.fullmatch(names, last):
            return reason
    if last == "b" and modules:  # Haiku's; at the top of a tree it says nothing
        return "a bias"
    if last in _GENERIC and modules:
        for reason, names in _MODULES.items():
            if re.fullmatch(names, modules[-1]):
                return reason
    if sum(length > 1 for length in leaf.shape) < 2:
        return "fewer than two axes longer than 1"
    return None


def _as_rule(pattern: str, setting: Setting) -> LayerRule:
    if isinstance(setting, bool):
        return LayerRule(prunable=setting)
    if isinstance(setting, (int, float)):
        setting = LayerRule(sparsity=setting)
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
    """Compiles (regex, setting) pairs, each of which must match some parameter.

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


def _by_default(path: str, leaf: Any) -> LayerRule:
    return LayerRule(prunable=why_dense(path, leaf) is None)


def _rule_function(
    prunable: Prunable, paths: Sequence[str]
) -> Callable[[str, Any], LayerRule]:
    if prunable is None:
        return _by_default
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
        return _by_default(path, leaf)

    return first_match


def layer_rules(params: PyTree, prunable: Prunable = None) -> PyTree:
    """Decides for every leaf whether it is prunable and under what rule.

    Args:
        params: Parameters: arrays or `jax.ShapeDtypeStruct`, of any shapes.
        prunable: None selects kernels: floats with two or more axes longer than 1, by
            whose path they are no bias, norm scale, embedding or token. A function of
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
    paths = [path for path, _ in pairs]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(
            f"params must have leaves of different paths; got {twice!r} twice as text: "
            "rename a key."
        )
    rule_of = _rule_function(prunable, paths)

    def decide(path: Sequence[Any], leaf: Any) -> Any:
        name = path_string(path)
        if callable(prunable) and not is_float(leaf):
            return optax.MaskedNode()
        rule = rule_of(name, leaf)
        if not rule.prunable:
            return optax.MaskedNode()
        if not is_float(leaf):
            raise ValueError(
                f"params at {name!r} must hold floats to be prunable; got "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}; exclude it with "
                f"prunable=[({name!r}, False)]."
            )
        if rule.stacked and leaf.ndim < 2:
            raise ValueError(
                f"prunable: {name!r} of shape {leaf.shape} cannot be stacked layers, "
                "which need a first axis and at least one more."
            )
        return _with_axes(rule, path, leaf.ndim - rule.stacked)

    rules = jax.tree_util.tree_map_with_path(decide, params)
    if not jax.tree.leaves(rules):
        raise ValueError(
            "params hold nothing to prune: there is no kernel of floats with two or "
            "more axes longer than 1, or prunable excludes them; the paths are "
            f"{paths}."
        )
    return rules


def _with_axes(rule: LayerRule, path: Sequence[Any], ndim: int) -> LayerRule:
    """Fills in the axes that a rule does not say."""
    inputs, outputs = kernel_axes(path, ndim)
    rule = dataclasses.replace(
        rule,
        inputs=inputs if rule.inputs is None else rule.inputs,
        outputs=outputs if rule.outputs is None else rule.outputs,
    )
    inputs, outputs = rule.axes(ndim)
    return dataclasses.replace(rule, inputs=inputs, outputs=outputs)


def axis_rules(masks: PyTree) -> PyTree:
    """Returns rules with the axes of inputs and outputs of the masks' layers.

    Args:
        masks: A mask tree, of which only shapes and paths matter.

    Returns:
        A tree like `masks` with a `LayerRule` at each prunable leaf, by `kernel_axes`.
    """

    def rule(path: Sequence[Any], mask: Any) -> Any:
        return mask if is_left_dense(mask) else _with_axes(LayerRule(), path, mask.ndim)

    return jax.tree_util.tree_map_with_path(rule, masks, is_leaf=is_left_dense)


def kernel_dims(shape: tuple[int, ...], inputs: Axes, outputs: Axes) -> list[int]:
    """Returns the lengths of a kernel with its inputs and its outputs as one axis each.

    Args:
        shape: The kernel's shape.
        inputs: Its axes of inputs.
        outputs: Its axes of outputs.

    Returns:
        The positions of a convolution, then the inputs, if any, then the outputs.

    Example:
        >>> kernel_dims((768, 12, 64), (0,), (1, 2))
        [768, 768]
    """
    rest = [n for axis, n in enumerate(shape) if axis not in (*inputs, *outputs)]
    sides = [axes for axes in (inputs, outputs) if axes]
    return [*rest, *(math.prod(shape[axis] for axis in axes) for axes in sides)]


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
    """Returns a rule for each layer of a stacked leaf.

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
