"""Which leaves of a parameter tree are prunable, and by which rule."""

import dataclasses

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.parameters import (
    join_layers,
    kernel_axes,
    kernel_dims,
    split_layers,
    split_rules,
    why_dense,
)


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


def test_by_default_kernels_are_prunable(params):
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


def test_a_number_is_the_sparsity_of_the_leaf_and_a_rule_gets_its_axes(params):
    rule = sj.LayerRule(sparsity=0.25, outputs=(0,))
    rules = sj.layer_rules(params, [("Conv.*kernel", 0), ("Dense.*kernel", rule)])
    conv = sj.LayerRule(sparsity=0.0, inputs=(2,), outputs=(3,))
    assert rules["params"]["Conv_0"]["kernel"] == conv
    dense = sj.LayerRule(sparsity=0.25, inputs=(), outputs=(0,))
    assert rules["params"]["Dense_0"]["kernel"] == dense


def test_a_rule_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        sj.LayerRule().sparsity = 0.5


def test_rules_need_only_shapes(params):
    shapes = jax.eval_shape(lambda p: p, params)
    assert sj.layer_rules(shapes) == sj.layer_rules(params)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([jnp.ones((2, 2)), (jnp.ones((3, 2)), jnp.ones(3))], ["0", "1/0"]),
        (jnp.ones((4, 2)), [""]),
        (
            optax.FactoredState(jnp.int32(1), jnp.ones((2, 2)), jnp.ones((2, 3)), None),
            ["v_row", "v_col"],
        ),
        ({"w": jnp.ones((2, 3)), "name": "net", "f": jnp.tanh, "none": None}, ["w"]),
        ({"w": jnp.ones((2, 3)), "int": jnp.ones((2, 3), int)}, ["w"]),
        (
            {"w": jnp.ones((2, 3)), "one": jnp.ones((1, 9)), "ones": jnp.ones((1, 1))},
            ["w"],
        ),
    ],
    ids=["list", "array", "named tuple", "no arrays", "integers", "one axis"],
)
def test_any_pytree_has_rules_and_what_is_no_float_array_is_left_alone(
    params, expected
):
    assert prunable_paths(params) == expected


# What is no kernel, by its name.

TWO = jnp.ones((4, 6))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        # Flax linen and NNX.
        ("encoder/layer_0/attention/query/kernel", None),
        ("Dense_0/kernel", None),
        ("attention/query/bias", "a bias"),
        ("LayerNorm_0/scale", "a norm's scale"),
        ("Embed_0/embedding", "an embedding"),
        ("encoder/pos_embedding", "an embedding"),
        ("cls", "a position or class token"),
        ("mask_token", "a position or class token"),
        # Haiku.
        ("mlp/~/linear_0/w", None),
        ("mlp/~/linear_0/b", "a bias"),
        ("layer_norm/offset", "a bias"),
        ("embed/embeddings", "an embedding"),
        # Equinox, and GPT-2's names.
        ("layers/0/weight", None),
        ("patch_embed/proj/weight", None),
        ("norm/weight", "a norm's scale"),
        ("blocks/3/ln_1/weight", "a norm's scale"),
        ("token_embedding/weight", "an embedding"),
        ("transformer/wte/weight", "an embedding"),
        # Words that are part of other words.
        ("upscale_conv/kernel", None),
        ("unbiased/kernel", None),
        ("b", None),
    ],
)
def test_names_say_what_is_no_kernel(path, reason):
    assert why_dense(path, TWO) == reason


def test_leaves_of_models_are_found():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(7, 8)(tokens)
            x = nn.LayerNorm()(x)
            x = nn.MultiHeadDotProductAttention(2)(x, x)
            return nn.Dense(3)(x)

    def in_haiku(tokens):
        x = hk.Embed(7, 8)(tokens)
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        return hk.Linear(3)(x)

    class Equinox(eqx.Module):
        embedding: eqx.nn.Embedding
        norm: eqx.nn.LayerNorm
        conv: eqx.nn.Conv2d
        head: eqx.nn.Linear

    class Nnx(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(7, 8, rngs=nnx.Rngs(0))
            self.norm = nnx.LayerNorm(8, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(8, 3, rngs=nnx.Rngs(0))

    key, tokens = jax.random.key(0), jnp.zeros((1, 5), int)
    equinox = Equinox(
        eqx.nn.Embedding(7, 8, key=key),
        eqx.nn.LayerNorm((4, 8)),
        eqx.nn.Conv2d(3, 4, 3, key=key),
        eqx.nn.Linear(8, 3, key=key),
    )
    attention = "params/MultiHeadDotProductAttention_0"
    heads = [f"{attention}/{name}/kernel" for name in ("key", "out", "query", "value")]
    linen = Linen().init(key, tokens)
    assert prunable_paths(linen) == ["params/Dense_0/kernel", *heads]
    haiku = hk.transform(in_haiku).init(key, tokens)
    assert prunable_paths(haiku) == ["linear/w"]
    assert prunable_paths(equinox) == ["conv/weight", "head/weight"]
    assert prunable_paths(nnx.state(Nnx(), nnx.Param)) == ["head/kernel/value"]

    at = sj.layer_rules(linen)["params"]["MultiHeadDotProductAttention_0"]
    assert at["query"]["kernel"].axes(3) == ((0,), (1, 2))
    assert at["out"]["kernel"].axes(3) == ((0, 1), (2,))
    in_equinox = sj.layer_rules(equinox)
    assert in_equinox.conv.weight.axes(4) == ((1,), (0,))
    assert in_equinox.head.weight.axes(2) == ((1,), (0,))
    assert sj.layer_rules(haiku)["linear"]["w"].axes(2) == ((0,), (1,))


def test_axes_of_inputs_and_outputs():
    assert sj.LayerRule().axes(4) == ((2,), (3,))
    assert sj.LayerRule().axes(1) == ((), (0,))
    assert sj.LayerRule(outputs=(1, 2)).axes(3) == ((), (1, 2))
    assert sj.LayerRule(inputs=(-3,), outputs=(-1, -2)).axes(3) == ((0,), (1, 2))
    assert kernel_axes("block/value/kernel", 3) == ((0,), (1, 2))
    assert kernel_axes("block/value/kernel", 2) == ((0,), (1,))
    assert kernel_axes("conv/weight", 4) == ((2,), (3,))  # text names no attribute
    assert kernel_dims((3, 3, 4, 8), (2,), (3,)) == [3, 3, 4, 8]
    assert kernel_dims((2, 3, 5), (0, 1), (2,)) == [6, 5]
    assert kernel_dims((8, 4, 3, 3), (1,), (0,)) == [3, 3, 4, 8]


def test_paths_that_are_equal_as_text_are_refused():
    with pytest.raises(ValueError, match="of different paths; got 'a/b' twice"):
        sj.layer_rules({"a/b": TWO, "a": {"b": TWO}})


def test_splitting_stacked_layers_and_joining_them_gives_the_leaf_back():
    params = {"blocks": jnp.arange(24.0).reshape(3, 4, 2), "head": jnp.ones((2, 2))}
    rules = sj.layer_rules(
        params, [("blocks", sj.LayerRule(sparsity=0.5, stacked=True))]
    )
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
