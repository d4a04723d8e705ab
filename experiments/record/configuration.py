"""In what two configurations differ."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import jax


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], operational: Collection[str] = ()
) -> list[str]:
    """Tells in which fields two configurations are of different experiments.

    Args:
        saved: A configuration that was read from JSON.
        now: Another, of what JSON has words for.
        operational: Fields that say how a run is run, not what it computes; dots lead
            to nested ones.

    Returns:
        "FIELD was ... and is ..." for each; none where they differ in operational
        fields alone, or not at all.

    Example:
        >>> saved = {"seed": 1, "workers": 2}
        >>> differences(saved, {"seed": 3, "workers": 4}, operational=["workers"])
        ['seed was 1 and is 3']
    """
    old, new = _flat(saved), _flat(json.loads(json.dumps(now)))
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in operational
    ]


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: not isinstance(node, dict)
    )
    return {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in leaves}
