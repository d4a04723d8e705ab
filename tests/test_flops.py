"""FLOPs: against hand counts, XLA's own, brute force, and published figures."""

import math
from fractions import Fraction
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import sparsejax as sj
from experiments.models import create_model
from sparsejax.analysis.accounting import ACCOUNTINGS
from sparsejax.trees import leaves_with_paths


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def by_parameter(apply, params, *inputs):
    return sj.forward_flops(apply, params, *inputs).by_parameter


X = spec(7, 4)
W = spec(4, 6)
ONE = 2 * 7 * 4 * 6  # FLOPs of X @ W
MASK = np.arange(24).reshape(4, 6) % 3 == 0

# --- Matrix products -----------------------------------------------------------------


def test_a_perceptron_by_hand():
    params = {
        "a": {"kernel": spec(5, 8), "bias": spec(8)},
        "b": {"kernel": spec(8, 3), "bias": spec(3)},
    }

    def apply(params, x):
        for layer in ("a", "b"):
            # The bias is of the activations from here on and owns no later product.
            x = nn.relu(x @ params[layer]["kernel"] + params[layer]["bias"])
        return x

    flops = sj.forward_flops(apply, params, spec(10, 5))
    assert flops.by_parameter == {
        "a/bias": 0,
        "a/kernel": 2 * 10 * 5 * 8,
        "b/bias": 0,
        "b/kernel": 2 * 10 * 8 * 3,
    }
    assert flops.other == 0
    assert flops.total == 800 + 480


@jax.custom_jvp
def with_jvp(w, x):
    return x @ w


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), with_jvp(*primals)))


@jax.custom_vjp
def with_vjp(w, x):
    return x @ w


with_vjp.defvjp(lambda w, x: (x @ w, None), lambda residual, g: (g, g))


def standardized(w):
    return (w - w.mean(0)) / (w.std(0) + 1e-5)


WAYS = {
    "plain": lambda w, x: x @ w,
    "first operand": lambda w, x: w.T @ x.T,
    "einsum": lambda w, x: jnp.einsum("bi,io->ob", x, w),
    "reshaped": lambda w, x: jnp.einsum("bi,ihd->bhd", x, w.reshape(4, 2, 3)),
    "bfloat16": lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    "masked by a constant": lambda w, x: x @ (w * MASK),
    "chosen by a constant": lambda w, x: x @ jnp.where(MASK, w, 0.0),
    "permuted": lambda w, x: x @ w[:, np.array([5, 0, 1, 4, 2, 3])],
    "broadcast": lambda w, x: jnp.broadcast_to(x, (1, 7, 4)) @ w[None],
    "standardized": lambda w, x: x @ standardized(w),
    "quantized": lambda w, x: x @ (jnp.round(w / abs(w).max() * 127) * 0.01),
    "low-rank update": lambda w, x: x @ (w + jnp.ones((4, 1)) @ jnp.ones((1, 6))),
    "jit": lambda w, x: jax.jit(jnp.matmul)(x, w),
    "remat": lambda w, x: jax.checkpoint(jnp.matmul)(x, w),
    "vmap": lambda w, x: jax.vmap(lambda row: row @ w)(x),
    "map": lambda w, x: lax.map(lambda row: row @ w, x),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "logged": lambda w, x: (jax.debug.print("{}", x), x @ w)[1],
    "barrier": lambda w, x: jnp.matmul(*lax.optimization_barrier((x, w))),
    "either branch": lambda w, x: x @ lax.cond(x[0, 0] > 0, jnp.abs, jnp.sign, w),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_is_found_on_whatever_way_it_comes(way):
    flops = sj.forward_flops(lambda p, x: WAYS[way](p["w"], x), {"w": W}, X)
    assert flops.by_parameter["w"] == ONE
    # The product of the two constants is the only one of no parameter.
    assert flops.other == (2 * 4 * 6 if way == "low-rank update" else 0)


def test_a_mask_given_as_a_bool_input_is_looked_through():
    masks = spec(4, 6, dtype=bool)
    apply = lambda p, x, m: x @ jnp.where(m, p["w"], 0)
    assert by_parameter(apply, {"w": W}, X, masks) == {"w": ONE}


def test_masks_applied_to_the_tree_are_looked_through():
    params = {"w": np.ones((4, 6), np.float32), "b": np.ones(6, np.float32)}
    masks = {"w": MASK, "b": optax.MaskedNode()}

    def apply(params, x):
        params = sj.apply_masks(params, masks)
        return x @ params["w"] + params["b"]

    assert by_parameter(apply, params, X) == {"b": 0, "w": ONE}


def test_a_weight_owns_its_product_and_not_its_scale():
    """Weight normalization: w = g v / |v|."""
    params = {"g": spec(6), "v": W}

    def apply(params, x):
        v = params["v"]
        return x @ (params["g"] * v / jnp.linalg.norm(v, axis=0))

    assert by_parameter(apply, params, X) == {"g": 0, "v": ONE}


def test_concatenated_weights_share_by_their_sizes():
    params = {"key": spec(4, 2), "query": spec(4, 2), "value": spec(4, 3)}

    def apply(params, x):
        fused = jnp.concatenate([params["query"], params["key"], params["value"]], 1)
        return x @ fused

    assert by_parameter(apply, params, X) == {"key": 112, "query": 112, "value": 168}
    fill = lambda p, x: x @ jnp.zeros((4, 9)).at[:, 3:5].set(p["key"])
    assert by_parameter(fill, params, X)["key"] == 2 * 7 * 4 * 9


def test_shares_add_up_where_they_do_not_divide():
    """Four FLOPs for three parameters that are added up."""
    params = [spec(2, 1), spec(2, 1), spec(2, 1)]
    apply = lambda p, x: lax.dot(x, sum(p))
    flops = by_parameter(apply, params, spec(1, 2))
    assert list(flops) == ["0", "1", "2"]
    assert sorted(flops.values()) == [1, 1, 2]


def test_parameters_in_one_vector():
    unravel = lambda flat: (flat[:24].reshape(4, 6), flat[24:].reshape(6, 2))

    def apply(flat, x):
        a, b = unravel(flat)
        return x @ a @ b

    assert by_parameter(apply, spec(36), X) == {"": ONE + 2 * 7 * 6 * 2}


def test_a_tied_weight_pays_for_each_use():
    apply = lambda p, x: x @ p["w"] @ p["w"].T
    assert by_parameter(apply, {"w": W}, X) == {"w": 2 * ONE}


def test_looking_up_an_embedding_is_free_and_one_hot_is_not():
    table, ids = {"table": spec(50, 6)}, spec(7, dtype=jnp.int32)
    assert by_parameter(lambda p, i: p["table"][i], table, ids) == {"table": 0}
    apply = lambda p, i: jax.nn.one_hot(i, 50) @ p["table"]
    assert by_parameter(apply, table, ids) == {"table": 2 * 7 * 50 * 6}
    # What was looked up is an activation.
    params = {**table, "w": spec(6, 3)}
    apply = lambda p, i: p["table"][i] @ p["w"]
    assert by_parameter(apply, params, ids) == {"table": 0, "w": 2 * 7 * 6 * 3}


def test_products_that_belong_to_no_one_parameter():
    square = {"w": spec(4, 4), "v": spec(4, 4)}
    of_no_one = {
        "activations": lambda p, x: x @ x.T,
        "parameters": lambda p, x: p["w"] @ p["v"],
        "weights scaled by inputs": lambda p, x: x @ (p["w"] * x[0]),
        "a product of parameters": lambda p, x: x @ (p["w"] @ p["v"]),
        "sums of weights": lambda p, x: x @ p["w"].sum(1),
    }
    expected = {
        "activations": 2 * 7 * 4 * 7,
        "parameters": 2 * 4**3,
        "weights scaled by inputs": 2 * 7 * 4 * 4,
        "a product of parameters": 2 * 4**3 + 2 * 7 * 4 * 4,
        "sums of weights": 2 * 7 * 4,
    }
    for name, apply in of_no_one.items():
        flops = sj.forward_flops(apply, square, X)
        assert flops == ({"v": 0, "w": 0}, expected[name]), name


def test_attention_by_hand():
    batch, tokens, width, heads = 2, 5, 8, 4
    params = {name: spec(width, width) for name in ("key", "out", "query", "value")}

    def apply(params, x):
        def split(name):
            return (x @ params[name]).reshape(batch, tokens, heads, -1)

        mixed = jax.nn.dot_product_attention(*map(split, ("query", "key", "value")))
        return mixed.reshape(x.shape) @ params["out"]

    flops = sj.forward_flops(apply, params, spec(batch, tokens, width))
    assert flops.by_parameter == dict.fromkeys(params, 2 * batch * tokens * width**2)
    # Scores and mixing: each head has tokens^2 products of width / heads numbers.
    assert flops.other == 2 * (2 * batch * tokens**2 * width)


def test_an_expert_pays_for_the_rows_routed_to_it():
    """Seven rows through three experts: each row goes through one."""

    def apply(params, x, sizes):
        return lax.ragged_dot(x, params["experts"], sizes)

    experts = {"experts": spec(3, 4, 6)}
    sizes = spec(3, dtype=jnp.int32)
    assert by_parameter(apply, experts, X, sizes) == {"experts": ONE}

    def train(params, x, sizes):
        return jax.grad(lambda p: apply(p, x, sizes).sum())(params)

    # Forward, and the gradient of the experts: again each row is in one product.
    assert sj.forward_flops(train, experts, X, sizes).total == 2 * ONE


def test_a_matrix_product_has_the_flops_that_xla_counts():
    apply = lambda p, x: jnp.einsum("gbi,gio->gbo", x, p)
    arguments = spec(3, 4, 6), spec(3, 7, 4)
    by_xla = jax.jit(apply).lower(*arguments).cost_analysis()["flops"]
    assert sj.forward_flops(apply, *arguments).total == by_xla == 3 * ONE


# --- Convolutions --------------------------------------------------------------------

CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "valid": {"padding": "VALID"},
    "strided": {"padding": "SAME", "window_strides": (2, 3)},
    "uneven padding": {"padding": ((0, 3), (2, 0)), "window_strides": (2, 1)},
    "grouped": {"padding": "SAME", "feature_group_count": 2},
    "depthwise": {"padding": "SAME", "feature_group_count": 4},
    "dilated": {"padding": "SAME", "rhs_dilation": (2, 3)},
    "batch groups": {"padding": "VALID", "batch_group_count": 3},
}


def convolution(kernel, x, **settings):
    settings.setdefault("window_strides", (1, 1))
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **settings)


def explicit_padding(settings, image, window):
    if not isinstance(settings["padding"], str):
        return settings["padding"]
    spread = [
        (size - 1) * d + 1
        for size, d in zip(window, settings.get("rhs_dilation", (1, 1)))
    ]
    strides = settings.get("window_strides", (1, 1))
    return lax.padtype_to_pads(image, spread, strides, settings["padding"])


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_as_many_multiply_adds_as_products_of_ones(name):
    """With ones on inputs and padding, each multiply-add of ones adds one."""
    settings = CONVOLUTIONS[name]
    groups = settings.get("feature_group_count", 1)
    image, window, features = (9, 8), (3, 2), 12
    x = np.ones((6, *image, 4), np.float32)
    kernel = np.ones((*window, 4 // groups, features), np.float32)
    padding = explicit_padding(settings, image, window)
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=1)
    ones = convolution(kernel, padded, **{**settings, "padding": "VALID"})
    apply = partial(convolution, **settings)
    assert by_parameter(apply, kernel, x) == {"": 2 * int(ones.sum())}


def test_a_strided_grouped_convolution_by_hand():
    # 32 x 32 -> 16 x 16, 3 x 3 taps over 8 / 4 channels for each of 12 features.
    apply = partial(
        convolution, padding="SAME", window_strides=(2, 2), feature_group_count=4
    )
    flops = by_parameter(apply, spec(3, 3, 2, 12), spec(5, 32, 32, 8))
    assert flops == {"": 2 * 5 * 16 * 16 * 9 * 2 * 12}


def test_a_valid_convolution_has_the_flops_that_xla_counts():
    apply = partial(convolution, padding="VALID", window_strides=(2, 1))
    arguments = spec(3, 2, 4, 12), spec(5, 9, 8, 4)
    by_xla = jax.jit(apply).lower(*arguments).cost_analysis()["flops"]
    assert sj.forward_flops(apply, *arguments).total == by_xla


def test_a_transposed_convolution_spreads_each_input_once():
    """Each of 5 x 6 x 6 inputs of 3 channels meets 4 x 4 taps of 7 features."""

    def apply(kernel, x):
        return lax.conv_transpose(x, kernel, (2, 2), "SAME")

    flops = by_parameter(apply, spec(4, 4, 3, 7), spec(5, 6, 6, 3))
    assert flops == {"": 2 * (5 * 6 * 6 * 3) * (4 * 4 * 7)}


def test_taps_between_inputs_do_not_count():
    """Of _a0b0c, with a place of padding in front, 3 taps at stride 2 see _a0, 0b0."""

    def apply(kernel, x):
        settings = {"padding": [(1, 0)], "lhs_dilation": [2], "window_strides": [2]}
        return lax.conv_general_dilated(x, kernel, **settings)

    assert by_parameter(apply, spec(1, 1, 3), spec(1, 1, 3)) == {"": 2 * 2}


def test_other_layouts_of_a_convolution():
    def apply(kernel, x):
        return lax.conv(x, kernel, (1, 1), "VALID")  # NCHW, OIHW

    flops = by_parameter(apply, spec(12, 4, 3, 2), spec(5, 4, 9, 8))
    assert flops == {"": 2 * 5 * 12 * (7 * 7) * (4 * 3 * 2)}


# --- Control flow --------------------------------------------------------------------

LAYERS = 3


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_over_stacked_layers(remat):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.Dense(8, name="up", dtype=jnp.bfloat16)(nn.LayerNorm()(x))
            return x + nn.Dense(4, name="down", use_bias=False)(nn.relu(y)), None

    layer = nn.remat(Layer, prevent_cse=False) if remat else Layer
    stack = nn.scan(
        layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
    )(name="layers")
    model = lambda variables, x: stack.apply(variables, x, None)[0]
    variables = jax.eval_shape(stack.init, jax.random.key(0), X, None)
    flops = sj.forward_flops(model, variables, X)
    once = 2 * 7 * 4 * 8
    costs = {path: n for path, n in flops.by_parameter.items() if n}
    assert costs == {
        "params/down/kernel": LAYERS * once,
        "params/up/kernel": LAYERS * once,
    }
    assert len(flops.by_parameter) == 5
    assert flops.other == 0


def test_layers_taken_from_a_stack_one_by_one():
    stack, x = spec(LAYERS, 4, 4), spec(7, 4)
    cost = {"": LAYERS * 2 * 7 * 4 * 4}

    def unrolled(stack, x):
        for i in range(LAYERS):
            x = x @ stack[i]
        return x

    def looped(stack, x):
        return lax.fori_loop(0, LAYERS, lambda i, x: x @ stack[i], x)

    def scanned(stack, x):
        halved = lax.map(lambda w: w / 2, stack)  # leaves one scan, enters the next
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, halved)[0]

    for apply in (unrolled, looped, scanned):
        assert by_parameter(apply, stack, x) == cost


def test_a_slice_of_a_stack_shares_as_one_layer():
    params = {"own": spec(LAYERS, 4, 2), "shared": spec(4, 2)}

    def apply(params, x):
        def layer(x, own):
            return jnp.tanh(x @ jnp.concatenate([own, params["shared"]], 1)), None

        return lax.scan(layer, x, params["own"])[0]

    half = LAYERS * 2 * 7 * 4 * 2
    assert by_parameter(apply, params, X) == {"own": half, "shared": half}


def test_a_recurrent_network_pays_at_every_step():
    params = {"input": spec(4, 6), "start": spec(6), "state": spec(6, 6)}

    def apply(params, sequence):
        def step(state, x):
            state = jnp.tanh(x @ params["input"] + state @ params["state"])
            return state, None

        start = jnp.broadcast_to(params["start"], (7, 6))
        return lax.scan(step, start, sequence)[0]

    flops = sj.forward_flops(apply, params, spec(11, 7, 4))
    assert flops.by_parameter == {
        "input": 11 * ONE,
        "start": 0,
        "state": 11 * 2 * 7 * 6 * 6,
    }
    assert flops.other == 0


def test_nested_scans_multiply():
    def apply(w, x):
        inner = lambda x, _: (jnp.tanh(x @ w), None)
        outer = lambda x, _: (lax.scan(inner, x, None, length=5)[0], None)
        return lax.scan(outer, x, None, length=3)[0]

    assert by_parameter(apply, spec(4, 4), X) == {"": 15 * 2 * 7 * 4 * 4}


def test_the_most_expensive_branch_counts():
    params = {"a": spec(4, 4), "b": spec(4, 1), "c": spec(1, 4)}

    def apply(params, x, choice):
        dear = lambda: x @ params["a"]
        cheap = lambda: x @ params["b"] @ params["c"]
        return lax.switch(choice, [lambda: x, cheap, dear, cheap])

    flops = by_parameter(apply, params, X, spec(dtype=jnp.int32))
    assert flops == {"a": 2 * 7 * 4 * 4, "b": 0, "c": 0}


def test_a_loop_without_products_is_free():
    def apply(w, x):
        halved = lax.while_loop(lambda v: v[0, 0] > 1, lambda v: v / 2, w)
        return x @ halved

    assert by_parameter(apply, W, X) == {"": ONE}


def doubled_while(w, x):
    return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)


def called_back(w, x):
    return jax.pure_callback(np.matmul, spec(7, 6), x, w)


def sharded(w, x):
    one = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    here = jax.sharding.PartitionSpec()
    return jax.shard_map(jnp.matmul, mesh=one, in_specs=here, out_specs=here)(x, w)


@pytest.mark.parametrize(
    ("apply", "primitive", "width"),
    [
        (doubled_while, "while", 4),
        (lambda w, x: jax.jit(doubled_while)(w, x), "while", 4),
        (lambda w, x: lax.map(partial(doubled_while, w), x[None]), "while", 4),
        (called_back, "pure_callback", 6),
        (sharded, "shard_map", 6),
    ],
)
def test_flops_that_cannot_be_known_are_refused(apply, primitive, width):
    with pytest.raises(ValueError, match=f"^apply must .* inside '{primitive}'"):
        sj.forward_flops(apply, spec(4, width), X)


# --- Inference -----------------------------------------------------------------------


def test_inference_at_the_densities_of_masks_is_exact():
    """A layer of n weights at m active has m / n of its FLOPs, in whole numbers."""
    rng = np.random.default_rng(0)
    params = {
        "conv": np.ones((3, 3, 2, 5), np.float32),
        "head": np.ones((5, 7), np.float32),
        "free": np.ones((7, 7), np.float32),
    }
    masks = {
        "conv": rng.random((3, 3, 2, 5)) < 0.3,
        "head": rng.random((5, 7)) < 0.6,
        "free": optax.MaskedNode(),
    }

    def apply(params, x):
        y = convolution(params["conv"], x, padding="SAME").mean((1, 2))
        return y @ params["head"] @ params["free"]

    flops = sj.forward_flops(apply, params, spec(1, 8, 8, 2))
    densities = sj.layer_densities(masks)
    assert densities == {
        "conv": Fraction(int(masks["conv"].sum()), 90),
        "head": Fraction(int(masks["head"].sum()), 35),
    }
    needed = 2 * 64 * masks["conv"].sum() + 2 * masks["head"].sum() + 2 * 49
    got = sj.inference_flops(flops, densities)
    assert isinstance(got, int)
    assert got == needed
    assert sj.inference_flops(flops, {}) == flops.total


def test_inference_keeps_what_no_mask_can_save():
    flops = sj.ForwardFlops({"w": 10, "v": 20}, other=3)
    assert sj.inference_flops(flops, {"w": 0.0, "v": 0.0}) == 3
    assert sj.inference_flops(flops, {"w": Fraction(1, 4)}) == 25.5
    assert sj.inference_flops(flops, {"w": 0.1}) == pytest.approx(24)


def test_an_empty_leaf_has_a_density():
    assert sj.layer_densities({"w": np.zeros((0, 3), bool)}) == {"w": 0}


# --- Training ------------------------------------------------------------------------

SPARSE, DENSE = 30, 100
NET = sj.ForwardFlops({"w": 90}, other=10)  # dense 100
HISTORY = [(0, {}), (11, {"w": Fraction(2, 3)}), (20, {"w": Fraction(2, 9)})]
PASSES = [100] * 11 + [70] * 9 + [30] * 20
UPDATES = {10, 19, 30}
RULES = {
    "dense": lambda f, t: 300,
    "static": lambda f, t: 3 * f,
    "gmp": lambda f, t: 3 * f,
    "acdc": lambda f, t: 3 * f,
    "dsr": lambda f, t: 3 * f,
    "mest": lambda f, t: 3 * f,
    "set": lambda f, t: 3 * f,
    **dict.fromkeys(
        ("rigl", "itop", "srigl", "granet"),
        lambda f, t: 2 * f + 100 if t in UPDATES else 3 * f,
    ),
    "snfs": lambda f, t: 2 * f + 100,
}


@pytest.mark.parametrize("method", RULES)
def test_a_run_step_by_step(method):
    run = sj.training_flops(
        NET,
        HISTORY,
        total_steps=40,
        method=method,
        is_update_step=lambda steps: np.isin(steps, list(UPDATES)),
        batch_size=8,
    )
    assert run.flops == 8 * sum(RULES[method](f, t) for t, f in enumerate(PASSES))
    assert run.dense == 8 * 40 * 300
    assert run.relative == run.flops / run.dense


GROWTH = [
    (sj.scores.gradient, UPDATES),
    (sj.scores.random, ()),
    (sj.scores.momentum(0.9), range(40)),
    # The 4 steps up to an update; the run ends before one at step 41.
    (sj.scores.mean_gradient(4), {7, 8, 9, 10, 16, 17, 18, 19, *range(27, 31), 38, 39}),
    (lambda ctx: ctx.grads, UPDATES),
]


@pytest.mark.parametrize("method", ["rigl", "itop", "granet"])
@pytest.mark.parametrize(("grow", "dense_steps"), GROWTH)
def test_what_grows_says_which_steps_take_dense_gradients(method, grow, dense_steps):
    is_update_step = lambda steps: np.isin(steps, [*UPDATES, 41])
    run = sj.training_flops(NET, HISTORY, 40, method, is_update_step, grow=grow)
    assert run.flops == sum(
        2 * f + (100 if t in dense_steps else f) for t, f in enumerate(PASSES)
    )


def test_update_steps_are_needed_only_where_they_count():
    for grow, flops in ((sj.scores.random, 90), (sj.scores.momentum(), 160)):
        run = sj.training_flops(NET, [(0, {"w": Fraction(2, 9)})], 1, "itop", grow=grow)
        assert run.flops == flops


def test_every_accounting_is_that_of_a_dense_step_where_nothing_is_sparse():
    assert set(ACCOUNTINGS) == set(RULES)
    for name, accounting in ACCOUNTINGS.items():
        for is_update in (False, True):
            assert accounting(DENSE, DENSE, is_update) == 3 * DENSE, name


def test_top_kast_takes_gradients_of_its_larger_set():
    run = sj.training_flops(
        NET,
        [(0, {"w": Fraction(2, 9)})],
        total_steps=5,
        method=sj.top_kast_accounting(sj.inference_flops(NET, {"w": Fraction(4, 9)})),
    )
    assert run.flops == 5 * (2 * 30 + 50)


def test_acdc_pays_for_its_dense_phases():
    sparse = {"w": Fraction(1, 10)}  # 19 of 100
    phases = [(0, {}), (10, sparse), (15, {}), (20, sparse)]
    run = sj.training_flops(NET, phases, total_steps=100, method="acdc")
    assert run.relative == pytest.approx((15 * 1 + 85 * 0.19) / 100)


def test_rigl_by_the_formula_of_its_paper():
    """dT ordinary steps and one update step: a period of dT + 1 steps."""
    interval = 7
    run = sj.training_flops(
        NET,
        [(0, {"w": Fraction(2, 9)})],
        total_steps=8 * 5,
        method="rigl",
        is_update_step=lambda steps: steps % (interval + 1) == interval,
    )
    step = sj.rigl_step_flops(SPARSE, DENSE, interval)
    assert step == (3 * SPARSE * 7 + 2 * SPARSE + DENSE) / 8
    assert run.flops == 40 * step


def test_history_after_the_end_of_the_run_is_not_used():
    run = sj.training_flops(NET, [*HISTORY, (50, {})], total_steps=15)
    assert run.flops == 3 * sum(PASSES[:15])


def test_the_density_history_of_a_schedule_is_that_of_a_run():
    """GMP by layer: masks recorded before each step, as its forward pass sees them."""
    sizes = {"a": 40, "b": 24}
    first, second, last = (0.75 - 0.75 * (1 - step / 9) ** 3 for step in (4, 8, 9))
    params = {"a": jnp.linspace(-1, 1, 40).reshape(5, 8), "b": jnp.ones((8, 3))}
    tx = sj.gmp_transform(
        optax.sgd(0.1),
        final_sparsity=0.75,
        end_step=9,
        update_interval=4,
        scope="layer",
    )
    params, state = sj.init_sparse(tx, params)
    update = jax.jit(tx.update)
    recorded = []
    for step in range(12):
        recorded.append((step, sj.layer_densities(sj.get_masks(state))))
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
    schedule = sj.cubic_sparsity(0.0, 0.75, begin_step=0, end_step=9)
    shapes = {path: leaf.shape for path, leaf in params.items()}
    planned = sj.density_history(shapes, schedule, [4, 8, 9])
    # The new masks of steps 4, 8 and 9 are those of steps 5, 9 and 10.
    in_force = [0.0] * 5 + [first] * 4 + [second] + [last] * 2
    active = [sum(round((1 - s) * n) for n in sizes.values()) for s in in_force]
    assert len(set(active)) == 3
    # A batch of one: 2 FLOPs for each active weight and pass.
    flops = sj.forward_flops(lambda p, x: x @ p["a"] @ p["b"], params, spec(1, 5))
    for history in (recorded, planned):
        assert sj.training_flops(flops, history, 12, "gmp").flops == 6 * sum(active)


GOOD = {"flops": NET, "history": HISTORY, "total_steps": 40}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"method": "snfs", "grow": sj.scores.random},
            "^grow must be left out with method='snfs'.* 'rigl', 'itop', 'granet'",
        ),
        ({"method": "itop", "grow": "random"}, "^grow must be a score, such as"),
        ({"method": "adam"}, "^method must be one of 'acdc', .*; got 'adam'"),
        ({"method": "rigl"}, "^is_update_step must be given with method='rigl'"),
        ({"history": []}, r"^history must .* the first at step 0; got the steps \[\]"),
        ({"history": HISTORY[1:]}, r"^history must .* got the steps \[11, 20\]"),
        (
            {"history": [*HISTORY, (20, {})]},
            r"^history must .* got the steps \[0, 11, 20, 20\]",
        ),
        ({"history": [(0.5, {})]}, "^the steps of history must be .* got 0.5"),
        ({"history": [(0, {"z": 1})]}, "^densities must be of .* got 'z', .* 'w'"),
        ({"history": [(0, {"w": 90})]}, r"^densities must be in .* got 90 at 'w'"),
        ({"history": [(0, {"w": -0.1})]}, r"^densities must be in .* got -0.1 at 'w'"),
        ({"history": [(0, {"w": math.nan})]}, "^densities must be in .* got nan"),
        ({"total_steps": 0}, "^total_steps must be an integer of at least 1; got 0"),
        ({"batch_size": 0.5}, "^batch_size must be an integer of .* got 0.5"),
    ],
)
def test_bad_runs_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        sj.training_flops(**GOOD | bad)


def test_a_bad_interval_is_refused():
    with pytest.raises(ValueError, match=r"^update_interval must be .* got 0"):
        sj.rigl_step_flops(SPARSE, DENSE, 0)


# --- Published figures: ResNet-50 on ImageNet ----------------------------------------

STEM = "params/stem/kernel"


@pytest.fixture(scope="module")
def resnet50():
    model = create_model("resnet50", 1000)
    image = spec(1, 224, 224, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params = {"params": variables["params"]}
    rest = {"batch_stats": variables["batch_stats"]}
    apply = lambda p, x, rest: model.apply({**p, **rest}, x)
    flops = sj.forward_flops(apply, params, image, rest)
    kernels = {p: w.shape for p, w in leaves_with_paths(params) if len(w.shape) > 1}
    return flops, kernels


def densities_of(kernels, sparsity, distribution="erk"):
    counts = sj.layer_counts(kernels, sparsity, distribution)
    return {p: Fraction(n, math.prod(kernels[p])) for p, n in counts.items()}


def test_dense_resnet50(resnet50):
    """8.2e9 FLOPs for one image, 3.2e18 for 100 epochs of 1.28e6 images.

    8.18e9 exactly: the follow-up scripts of GraNet's table print 8.18e9 too.
    """
    flops, kernels = resnet50
    assert len(kernels) == 54
    assert sum(map(math.prod, kernels.values())) == 25_502_912
    assert flops.other == 0
    assert {path for path, n in flops.by_parameter.items() if n} == set(kernels)
    assert flops.total == 8_178_368_512
    assert f"{flops.total:.1e}" == "8.2e+09"
    run = sj.training_flops(flops, [(0, {})], 100, "dense", batch_size=1_280_000)
    assert run.flops == run.dense == 3 * flops.total * 1_280_000 * 100
    # 3.14e18: 3.2e18 is rounded up from 3.15e18, RigL's own count; see the last test.
    assert run.flops == pytest.approx(3.2e18, rel=0.02)


def test_half_sparse_erk_resnet50(resnet50):
    """5,844,558,336 from a Bernoulli draw; with the exact counts here 0.05 % less."""
    flops, kernels = resnet50
    half = sj.inference_flops(flops, densities_of(kernels, 0.5))
    assert half == pytest.approx(5_844_558_336, rel=1e-3)


PUBLISHED = [
    # sparsity, distribution, FLOPs of inference, of RigL training, of SNFS training
    (0.8, "erk", 0.42, 0.42, 0.61),
    (0.9, "erk", 0.24, 0.25, 0.50),
    (0.8, sj.uniform_except([STEM]), 0.23, 0.23, None),
    (0.9, sj.uniform_except([STEM]), 0.13, 0.13, None),
]


@pytest.mark.parametrize(
    ("sparsity", "distribution", "test", "rigl", "snfs"), PUBLISHED
)
def test_sparse_resnet50_within_a_hundredth(
    resnet50, sparsity, distribution, test, rigl, snfs
):
    """Fractions of dense FLOPs in the tables of RigL and ITOP.

    Assumed: all convolutions and the classifier share the budget, in "uniform" without
    the first convolution, which stays dense; RigL updates every 100 steps to the end,
    by its paper's formula. Measured: 0.414 and 0.242 for ERK, 0.223 and 0.126 for
    uniform. By our convention that is up to 0.007 below what is published; the next
    test says where the rest comes from.
    """
    flops, kernels = resnet50
    densities = densities_of(kernels, sparsity, distribution)
    sparse, dense = sj.inference_flops(flops, densities), flops.total
    step = sj.rigl_step_flops(sparse, dense, 100)
    assert sparse / dense == pytest.approx(test, abs=0.0075)
    assert step / (3 * dense) == pytest.approx(rigl, abs=0.0075)
    if snfs is not None:
        run = sj.training_flops(flops, [(0, densities)], 10, "snfs")
        assert run.relative == pytest.approx(snfs, abs=0.0075)


@pytest.mark.parametrize(
    ("sparsity", "distribution", "test", "rigl", "snfs"), PUBLISHED
)
def test_sparse_resnet50_to_the_last_digit_by_rigls_own_count(
    resnet50, sparsity, distribution, test, rigl, snfs
):
    """What RigL's counting script adds to multiply-adds makes the published digits.

    It counts one FLOP of ReLU for each output of each layer, and takes the first
    convolution, given its padded image of 230 x 230, to pad once more: 115 x 115
    outputs instead of 112 x 112.
    """
    flops, kernels = resnet50
    densities = densities_of(kernels, sparsity, distribution)
    # Every weight is used once at each place: FLOPs / weights / 2 places of outputs.
    relu = sum(
        flops.by_parameter[path] // (2 * math.prod(shape)) * shape[-1]
        for path, shape in kernels.items()
    )
    border = 2 * (115**2 - 112**2) * math.prod(kernels[STEM])
    dense = flops.total + relu + border
    sparse = sj.inference_flops(flops, densities) + relu + border * densities[STEM]
    assert f"{dense:.1e}" == "8.2e+09"
    assert f"{3 * dense * 1_281_167 * 100:.1e}" == "3.2e+18"  # ImageNet's images
    assert round(float(sparse / dense), 2) == test
    assert round(float(sj.rigl_step_flops(sparse, dense, 100) / (3 * dense)), 2) == rigl
    if snfs is not None:
        assert round(
            float(ACCOUNTINGS["snfs"](sparse, dense, False) / 3 / dense), 2
        ) == (snfs)
