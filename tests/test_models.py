"""The networks are those of the papers, compute as PyTorch does, take all options."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj
from experiments.models import MODELS, create_model
from experiments.models.layers import Layers, convolve, kernel_init, max_pool
from experiments.models.resnet import (
    BasicBlock,
    Bottleneck,
    PreActivatedBlock,
    ResNet,
    resnet,
    thin_resnet,
    wide_resnet,
)
from experiments.models.vgg import VGG, vgg
from experiments.models.vit import Attention, ViT, sine_positions, vit
from sparsejax.trees import leaves_with_paths

# Most of the time goes to compiling, which is twice as fast without optimizing.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

EMBEDDINGS = 14 * 14 + 1 + 1  # positions of patches and class token, and the token

# Name, classes, side: prunable tensors, prunable weights, all parameters. The prunable
# ones of VGG-19 and ResNet-50 are those of GraNet's code. All parameters, as published:
# torchvision's ResNets; Zagoruyko and Komodakis' WRN-28-10; timm's ViTs, which have
# embeddings on top.
COUNTS = {
    ("vgg_small", 10, 32): (7, 282_800, 283_674),
    ("vgg16", 10, 32): (14, 14_715_584, 14_724_042),
    ("vgg19", 10, 32): (17, 20_024_000, 20_035_018),
    ("vgg19", 100, 32): (17, 20_070_080, 20_081_188),
    ("cifar_resnet18", 10, 32): (21, 11_164_352, 11_173_962 - 10),
    ("cifar_resnet50", 10, 32): (54, 23_467_712, 23_520_842 - 10),
    ("cifar_resnet50", 100, 32): (54, 23_652_032, 23_705_252 - 100),
    ("resnet20", 10, 32): (22, 270_896, 272_474),
    ("resnet32", 10, 32): (34, 464_432, 466_906),
    ("wrn_22_2", 10, 32): (23, 1_076_912, 1_079_642),
    ("wrn_28_10", 10, 32): (29, 36_461_232, 36_479_194),
    ("resnet18", 1000, 224): (21, 11_678_912, 11_689_512),
    ("resnet34", 1000, 224): (37, 21_779_648, 21_797_672),
    ("resnet50", 1000, 224): (54, 25_502_912, 25_557_032),
    ("vit_ti16", 1000, 224): (74, 5_647_872, 5_717_416 - EMBEDDINGS * 192),
    ("vit_s16", 1000, 224): (74, 21_912_576, 22_050_664 - EMBEDDINGS * 384),
    ("vit_b16", 1000, 224): (74, 86_292_480, 86_567_656 - EMBEDDINGS * 768),
}

# One small network for each way of building one.
SMALL = {
    "basic": partial(ResNet, 10, (1, 1), BasicBlock, width=4, stem_width=4),
    "bottleneck": partial(
        ResNet, 10, (1, 1), Bottleneck, width=4, stem_width=8, imagenet_stem=True
    ),
    "wide": partial(
        ResNet, 10, (1, 1), PreActivatedBlock, width=8, stem_width=4, dropout_rate=0.3
    ),
    "vgg": partial(VGG, 10, stage_sizes=(1, 2), widths=(8, 16)),
    "vit": partial(ViT, 10, depth=1, width=16, heads=2, patch=4),
}
small = pytest.mark.parametrize("name", SMALL)


def images(batch=4, side=8, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, side, side, 3))


def make_variables(model, x, seed=0):
    """Draws variables of a model's shapes; cheaper to compile than its own `init`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        size = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return jnp.asarray(rng.normal(0, size, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def init(model, x, *paths):
    """Gives the leaves at some paths of what the model's own `init` gives."""

    @jit
    def chosen(key):
        pairs = dict(leaves_with_paths(model.init(key, x)["params"]))
        return {path: leaf for path, leaf in pairs.items() if path.endswith(paths)}

    return chosen(jax.random.key(0, impl="rbg"))


# The networks' sizes and names.


def test_every_model_is_counted():
    assert {name for name, _, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize(("name", "classes", "side"), COUNTS)
def test_counts_and_shapes(name, classes, side):
    model = create_model(name, classes)
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    params = variables["params"]
    masks = jax.eval_shape(sj.dense_masks, params)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    found = (len(jax.tree.leaves(masks)), sj.count_prunable(masks), total)
    assert found == COUNTS[name, classes, side]

    logits = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, classes), jnp.float32)

    rules = sj.layer_rules(params, [("stem", False), ("head", False)])
    kept = {
        path
        for (path, _), (_, rule) in zip(
            leaves_with_paths(params), leaves_with_paths(rules)
        )
        if isinstance(rule, sj.LayerRule)
    }
    paths = [path for path, leaf in leaves_with_paths(params) if leaf.ndim >= 2]
    assert all(path.endswith("/kernel") for path in paths)
    assert set(paths) - kept == {"stem/kernel", "head/kernel"}
    assert params["stem"]["kernel"].shape[2] == 3
    assert params["head"]["kernel"].shape[1] == classes


def test_names_are_readable():
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    block = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut", "shortcut_bn")
    shapes = jax.eval_shape(
        create_model("cifar_resnet50", 10).init, jax.random.key(0), x
    )
    params = shapes["params"]
    assert set(params["block_1_1"]) == set(block)
    assert set(params["block_4_3"]) == set(block[:6])
    assert set(params["head"]) == {"kernel"}
    shapes = jax.eval_shape(create_model("vgg19", 10).init, jax.random.key(0), x)
    convs = {"stem", *(f"conv_{n}" for n in range(1, 16))}
    assert set(shapes["params"]) == convs | {f"bn_{n}" for n in range(16)} | {"head"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(create_model, "resnet51", 10), "name must be one of 'vgg_small', "),
        (partial(vgg, 10, depth=12), "depth must be one of"),
        (partial(resnet, 10, depth=20), "depth must be one of"),
        (partial(resnet, 10, form="mnist"), "form must be one of"),
        (partial(thin_resnet, 10, depth=50 + 1), "depth must be 6n"),
        (partial(wide_resnet, 10, depth=20), "depth must be 6n"),
        (partial(wide_resnet, 10, zero_init=True), "zero_init must be False"),
        (partial(vit, 10, size="xl"), "size must be one of"),
        (partial(kernel_init, "glorot"), "the initializer of kernels must be one of"),
        (partial(sine_positions, 2, 2, 6), "width must be a multiple of 4"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "multiples of patch=3; got 8 x 8"),
        ({"heads": 3}, "width must be a multiple of heads=3; got 16"),
    ],
)
def test_refusals_of_a_transformer(options, message):
    model = SMALL["vit"](**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images())


# Convolution and pooling in the form that is fast on CPUs.


def value_and_grads(function, *args):
    """The value, and the gradients for weights that tell all outputs apart."""

    def weighted(*args):
        y = function(*args)
        return jnp.vdot(y, jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    both = jax.value_and_grad(weighted, argnums=range(len(args)), has_aux=True)
    return jit(both)(*args)


@pytest.mark.parametrize(
    ("side", "size", "stride"),
    [(4, 1, 1), (5, 1, 2), (4, 3, 1), (5, 3, 2), (4, 3, 2), (2, 3, 1), (1, 3, 1),
     (9, 7, 2), (8, 7, 2)],
)  # fmt: skip
def test_convolution_by_matmul_is_the_plain_one(side, size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, side, side, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, 3, 5)), jnp.float32)

    def conv(form, x, kernel):
        layers = Layers(False, "torch", jnp.float32, None, form)
        layer = layers.conv(5, size, "conv", stride)
        return layer.apply({"params": {"kernel": kernel}}, x)

    plain = value_and_grads(partial(conv, "plain"), x, kernel)
    for form in ("matmul", "auto"):
        found = value_and_grads(partial(conv, form), x, kernel)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, plain
        )


@pytest.mark.parametrize("side", [4, 5])
def test_pooling_by_reshape_is_the_plain_one(side):
    """After a ReLU, whose zeros are equal entries; an odd side loses its last row."""
    x = images(batch=2, side=side)
    pool = lambda form: lambda x: max_pool(nn.relu(x), form)
    expected = value_and_grads(lambda x: nn.max_pool(nn.relu(x), (2, 2), (2, 2)), x)
    for form in ("matmul", "auto", "plain"):
        found = value_and_grads(pool(form), x)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def primitives(function, *args):
    return {eqn.primitive.name for eqn in jax.make_jaxpr(function)(*args).eqns}


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_form_is_chosen_by_platform_and_shape(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    on_cpu = backend == "cpu"
    for side, size, by_matmul in [(8, 1, True), (2, 3, True), (4, 3, False)]:
        x, kernel = jnp.ones((1, side, side, 3)), jnp.ones((size, size, 3, 5))
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        conv = partial(convolve, window_strides=(1, 1), padding="SAME", **numbers)
        found = "dot_general" in primitives(conv, x, kernel)
        assert found == (by_matmul and on_cpu)
        assert "dot_general" not in primitives(partial(conv, form="plain"), x, kernel)
    pooled = primitives(partial(max_pool), jnp.ones((1, 4, 4, 3)))
    assert ("reduce_window_max" in pooled) != on_cpu


@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
def test_forms_have_the_same_parameters_and_flops(name):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    counted = []
    for form in ("plain", "matmul", "auto"):
        model = create_model(name, 10, conv_form=form)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        shapes = jax.tree.map(lambda leaf: leaf.shape, variables)
        counted.append((shapes, sj.forward_flops(model.apply, variables, x)))
    assert counted[0] == counted[1] == counted[2]
    assert counted[0][1].total > 0


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of 'auto', 'plain', 'matm"):
        jax.eval_shape(SMALL["vgg"](conv_form="fast").init, jax.random.key(0), images())


# The semantics of PyTorch.


def test_convolutions_pad_both_sides_at_stride_2():
    layers = Layers(train=False, conv_init="torch", dtype=jnp.float32, axis_name=None)
    x = images(batch=1, side=6)
    centre = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(jnp.eye(3))
    layer = layers.conv(3, 3, "conv", stride=2)
    y = layer.apply({"params": {"kernel": centre}}, x)
    # Windows are centred at 0, 2 and 4; "SAME" would centre them at 1, 3 and 5.
    np.testing.assert_allclose(y, x[:, ::2, ::2], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "variance", "bound"),
    [
        ("fan_in", 2 / (9 * 64), math.inf),
        ("fan_out", 2 / (9 * 128), math.inf),
        ("torch", 1 / (3 * 9 * 64), 1 / math.sqrt(9 * 64)),
    ],
)
def test_kernels_are_drawn_as_by_pytorch(name, variance, bound):
    kernel = np.asarray(kernel_init(name)(jax.random.key(0), (3, 3, 64, 128)))
    assert abs(kernel.mean()) < 0.02 * math.sqrt(variance)
    assert kernel.var() == pytest.approx(variance, rel=0.02)
    assert np.abs(kernel).max() <= bound
    if bound == math.inf:  # not truncated at two standard deviations
        assert np.abs(kernel).max() > 3.5 * math.sqrt(variance)


def test_classifiers_are_drawn_as_by_pytorch():
    heads = ("head/kernel", "head/bias")
    params = init(VGG(100, (1,), (256,)), images(batch=1), *heads)
    assert params["head/kernel"].std() == pytest.approx(0.01, rel=0.02)
    assert not params["head/bias"].any()
    model = ResNet(100, (1,), BasicBlock, width=256, stem_width=256)
    for leaf in init(model, images(batch=1), *heads).values():
        assert 0.9 < jnp.abs(leaf).max() * math.sqrt(256) <= 1


def reference_resnet(variables, x, branch_scale):
    """The small bottleneck network in evaluation, written out as in PyTorch."""
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x, kernel, stride=1, pad=0):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def norm(x, p, s):
        return p["scale"] * (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) + p["bias"]

    def pool(x):  # 3 x 3, stride 2, padding 1
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        rows = range(0, x.shape[1] - 2, 2)
        windows = [[x[:, i : i + 3, j : j + 3].max((1, 2)) for j in rows] for i in rows]
        return np.stack([np.stack(row, axis=1) for row in windows], axis=1)

    relu = partial(np.maximum, 0)
    x = conv(x, params["stem"]["kernel"], 2, 3)
    x = pool(relu(norm(x, params["bn"], stats["bn"])))
    for name, stride in [("block_1_1", 1), ("block_2_1", 2)]:
        p, s = params[name], stats[name]
        y = relu(norm(conv(x, p["conv1"]["kernel"]), p["bn1"], s["bn1"]))
        y = relu(norm(conv(y, p["conv2"]["kernel"], stride, 1), p["bn2"], s["bn2"]))
        y = norm(conv(y, p["conv3"]["kernel"]), p["bn3"], s["bn3"])
        x = conv(x, p["shortcut"]["kernel"], stride)
        x = norm(x, p["shortcut_bn"], s["shortcut_bn"])
        x = relu(x + branch_scale * y)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("branch_scale", [1.0, 2**-0.5])
def test_imagenet_resnet_computes_what_the_paper_says(branch_scale):
    model = SMALL["bottleneck"](branch_scale=branch_scale)
    x = images(side=16)  # even sides: "SAME" would pad them on one side
    variables = make_variables(model, x)
    expected = reference_resnet(variables, x, branch_scale)
    logits = jit(model.apply)(variables, x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_attention_is_the_usual_one():
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    model = Attention(heads=4, dtype=jnp.float32)
    params = make_variables(model, x)["params"]
    usual = nn.MultiHeadDotProductAttention(num_heads=4)
    shapes = jax.eval_shape(usual.init, jax.random.key(0), x, x)["params"]
    same = {
        name: {
            kind: leaf.reshape(shapes[name][kind].shape) for kind, leaf in layer.items()
        }
        for name, layer in params.items()
    }
    found = jit(model.apply)({"params": params}, x)
    expected = jit(usual.apply)({"params": same}, x, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_sines_of_the_place():
    positions = sine_positions(3, 4, 8).reshape(3, 4, 8)
    assert positions.dtype == np.float32
    for i, j in np.ndindex(3, 4):
        angles = [j, j / 10_000, i, i / 10_000]
        sines, cosines = np.sin(angles), np.cos(angles)
        expected = [*sines[:2], *cosines[:2], *sines[2:], *cosines[2:]]
        np.testing.assert_allclose(positions[i, j], expected, rtol=1e-5)


# Blocks.


def test_blocks_start_as_their_shortcuts():
    """With zero scales of the last batch norms, y = relu(x), or x if pre-activated."""
    layers = Layers(train=False, conv_init="fan_in", dtype=jnp.float32, axis_name=None)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    for block, last in [(BasicBlock, "bn2"), (Bottleneck, "bn3")]:
        model = block(8 // block.expansion, stride=1, layers=layers)
        variables = make_variables(model, x)
        variables["params"][last] = jax.tree.map(
            jnp.zeros_like, variables["params"][last]
        )
        np.testing.assert_array_equal(jit(model.apply)(variables, x), nn.relu(x))


@pytest.mark.parametrize(("name", "last"), [("basic", "bn2"), ("bottleneck", "bn3")])
def test_zero_init_touches_the_last_batch_norm_of_every_block(name, last):
    for path, leaf in init(SMALL[name](zero_init=True), images(), "/scale").items():
        is_last = path.startswith("block_") and path.endswith(f"{last}/scale")
        assert np.all(leaf == (0 if is_last else 1)), path
    for leaf in init(SMALL[name](), images(), "/scale").values():
        assert np.all(leaf == 1)


def test_branch_scale_scales_the_branch():
    layers = Layers(train=False, conv_init="fan_in", dtype=jnp.float32, axis_name=None)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))

    def branch(scale):
        model = PreActivatedBlock(8, stride=1, layers=layers, branch_scale=scale)
        return jit(model.apply)(make_variables(model, x), x) - x

    np.testing.assert_allclose(branch(0.25), 0.25 * branch(1.0), rtol=1e-4, atol=1e-6)


# Options that all networks have.


@small
def test_half_precision_is_inside_only(name):
    model = SMALL[name](dtype=jnp.bfloat16, axis_name="batch")
    x = images()
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    apply = partial(model.apply, capture_intermediates=True)
    logits, state = jax.eval_shape(apply, shapes, x)
    assert logits.dtype == jnp.float32
    outputs = dict(leaves_with_paths(state["intermediates"]))
    inside = {
        path: leaf.dtype
        for path, leaf in outputs.items()
        if not path.startswith(("head", "__call__"))
    }
    assert "stem/__call__/0" in inside
    assert set(inside.values()) == {jnp.dtype("bfloat16")}


@small
def test_evaluation_uses_what_training_gathered(name):
    model, x = SMALL[name](), images()
    variables = make_variables(model, x)
    evaluate = jit(partial(model.apply, capture_intermediates=True))
    logits, state = evaluate(variables, x)
    np.testing.assert_array_equal(logits, evaluate(variables, x)[0])
    # The logits of an image do not depend on the others of its batch.
    others = jnp.concatenate([x[:1], 3 * images(batch=3, seed=1)])
    np.testing.assert_allclose(
        evaluate(variables, others)[0][:1], logits[:1], rtol=1e-4, atol=1e-5
    )
    if "batch_stats" not in variables:
        return
    train = jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = train(variables, x, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(logits, evaluate({**variables, **updated}, x)[0])

    stem = state["intermediates"]["stem"]["__call__"][0]
    first = {"vgg": "bn_0/mean", "wide": "block_1_1/bn1/mean"}.get(name, "bn/mean")
    before = dict(leaves_with_paths(variables["batch_stats"]))[first]
    after = dict(leaves_with_paths(updated["batch_stats"]))[first]
    expected = 0.9 * before + 0.1 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["basic", "vgg"])
def test_batch_statistics_are_of_the_global_batch(name):
    x = images(batch=8) * jnp.arange(1, 9)[:, None, None, None]  # unlike halves
    variables = make_variables(SMALL[name](), x)
    halves = x.reshape(2, 4, *x.shape[1:])

    def train(model, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, state = jit(partial(train, SMALL[name]()))(x)
    for axis_name in ("replicas", None):
        model = SMALL[name](axis_name=axis_name)
        parts, states = jax.pmap(partial(train, model), "replicas")(halves)
        close = np.allclose(parts.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4)
        assert close == (axis_name is not None)
        for whole, replicas in zip(jax.tree.leaves(state), jax.tree.leaves(states)):
            for replica in replicas:
                close = np.allclose(replica, whole, rtol=1e-3, atol=1e-4)
                assert close == (axis_name is not None)


@small
def test_a_model_trains_with_granet(name, quick_compilation):
    model, x = SMALL[name](), images(batch=4)
    labels = jnp.arange(4)
    tx = sj.granet_transform(
        optax.sgd(0.01, momentum=0.9, nesterov=True),
        total_steps=10,
        end_step=1,
        update_interval=1,
        final_sparsity=0.75,
    )
    others = make_variables(model, x)
    params = others.pop("params")

    def loss(params, others, key):
        logits, others = model.apply(
            {"params": params, **others},
            x,
            train=True,
            mutable=list(others),
            rngs={"dropout": key},
        )
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean(), others

    @jit
    def step(params, others, opt_state, key):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, others), grads = gradient(params, others, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), others, opt_state, value, grads

    opt_state = jit(tx.init)(params)
    for key in jax.random.split(jax.random.key(0)):
        params, others, opt_state, value, grads = step(params, others, opt_state, key)
        assert np.isfinite(value)
    for path, leaf in leaves_with_paths(grads):
        assert np.all(np.isfinite(leaf)) and leaf.any(), path
    masks = sj.get_masks(opt_state)
    size = sj.count_prunable(masks)
    assert sj.count_active(masks) == sj.keep_count(0.75, size)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
    assert sum(int((leaf != 0).sum()) for leaf in kernels) <= sj.keep_count(0.75, size)
