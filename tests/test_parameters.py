"""Which leaves of a parameter tree are prunable, and by which rule."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj
from sparsejax.parameters import join_layers, split_layers, split_rules


@pytest.fixture
def params():
    return {
        "params": {
            "Conv_0": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)},
            "Dense_0": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)},
            "norm": {"scale": jnp.ones(8)},
        }
    }


def prunable_paths(params, prunable=None):
    rules = sj.layer_rules(params, prunable)
    leaves = jax.tree_util.tree_leaves_with_path(rules)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]


CONV, DENSE = "params/Conv_0/kernel", "params/Dense_0/kernel"


def test_by_default_leaves_of_two_or_more_dimensions_are_prunable(params):
    assert prunable_paths(params) == [CONV, DENSE]
    assert sj.layer_rules(params)["params"]["norm"]["scale"] == optax.MaskedNode()


def test_a_function_of_path_and_leaf_selects(params):
    assert prunable_paths(params, lambda path, leaf: "Dense" in path) == [
        "params/Dense_0/bias",
        DENSE,
    ]
    assert prunable_paths(params, lambda path, leaf: leaf.ndim == 4) == [CONV]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([("Conv", False)], [DENSE]),
        ([("bias", True)], ["params/Conv_0/bias", CONV, "params/Dense_0/bias", DENSE]),
        ([("^params/Dense_0/kernel$", False)], [CONV]),
        ([("scale", True), ("kernel", False)], ["params/norm/scale"]),
        ([], [CONV, DENSE]),
    ],
)
def test_patterns_are_searched_in_the_path_and_the_rest_follows_the_default(
    params, patterns, expected
):
    assert prunable_paths(params, patterns) == expected


def test_the_first_pattern_that_matches_decides(params):
    rules = sj.layer_rules(params, [("Dense", 0.5), ("kernel", 0.9)])["params"]
    assert rules["Dense_0"]["kernel"].sparsity == 0.5
    assert rules["Dense_0"]["bias"].sparsity == 0.5
    assert rules["Conv_0"]["kernel"].sparsity == 0.9


def test_a_number_is_the_sparsity_of_the_leaf_and_a_rule_is_taken_as_it_is(params):
    rule = sj.LayerRule(sparsity=0.25)
    rules = sj.layer_rules(params, [("Conv.*kernel", 0), ("Dense.*kernel", rule)])
    assert rules["params"]["Conv_0"]["kernel"] == sj.LayerRule(sparsity=0.0)
    assert rules["params"]["Dense_0"]["kernel"] is rule


def test_a_rule_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sj.LayerRule().sparsity = 0.5


def test_rules_need_only_shapes(params):
    shapes = jax.eval_shape(lambda p: p, params)
    assert sj.layer_rules(shapes) == sj.layer_rules(params)


@pytest.mark.parametrize(
    "params",
    [
        [jnp.ones((2, 2)), (jnp.ones((3, 2)), jnp.ones(3))],
        jnp.ones((4, 2)),
        optax.FactoredState(jnp.zeros([]), jnp.ones((2, 2)), jnp.ones((2, 3)), None),
    ],
    ids=["list", "array", "named tuple"],
)
def test_any_pytree_of_arrays_has_rules(params):
    rules = sj.layer_rules(params)
    expected = [leaf.ndim >= 2 for leaf in jax.tree.leaves(params)]
    is_node = lambda node: isinstance(node, (sj.LayerRule, optax.MaskedNode))
    found = jax.tree.leaves(rules, is_leaf=is_node)
    assert [isinstance(node, sj.LayerRule) for node in found] == expected


def test_splitting_stacked_layers_and_joining_them_gives_the_leaf_back():
    params = {"blocks": jnp.arange(24.0).reshape(3, 4, 2), "head": jnp.ones((2, 2))}
    rules = sj.layer_rules(params, [("blocks", sj.LayerRule(0.5, stacked=True))])
    split = split_layers(params, rules)
    assert [layer.shape for layer in split["blocks"]] == [(4, 2)] * 3
    assert split["head"] is params["head"]
    each = split_rules(rules, params)["blocks"]
    assert each == (dataclasses.replace(rules["blocks"], stacked=False),) * 3
    joined = join_layers(split, rules)
    assert (joined["blocks"] == params["blocks"]).all()


def test_without_stacked_layers_splitting_gives_the_tree_itself(params):
    rules = sj.layer_rules(params)
    assert split_layers(params, rules) is params
