"""The library as users of optax, Equinox and Haiku call it."""

from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {
    "body": {"kernel": (8, 16), "bias": (16,)},
    "head": {"kernel": (16, 8), "bias": (8,)},
}
PRUNABLE, ACTIVE, IN_BODY = 256, 64, 32  # at 75 %, and of the body alone
STEPS = range(5)  # masks change at steps 2 and 4

GRADUAL = {"final_sparsity": 0.75, "end_step": 4, "update_interval": 2}
CONSTANT = {"sparsity": 0.75, "total_steps": 20, "update_interval": 2}


def draw(seed: int) -> Any:
    """Parameters or gradients: multiples of 1/64, so that small sums are exact."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (
            jnp.float32(rng.integers(1, 65, shape) / 64) * rng.choice([-1, 1], shape)
        ),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def granet(inner: Any) -> Any:
    return sj.granet_transform(inner, total_steps=20, **GRADUAL)


def make_step(tx: Any) -> Any:
    def step(params: Any, opt_state: Any, grads: Any) -> Any:
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step


def run(tx: Any, params: Any, opt_state: Any, steps: Any = STEPS) -> Any:
    step = jax.jit(make_step(tx))
    for t in steps:
        params, opt_state = step(params, opt_state, draw(100 + t))
    return params, opt_state


def stray(params: Any, masks: Any) -> int:
    """Counts the weights outside the masks that are not 0, apart from the library."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    pairs = zip(kernels, jax.tree.leaves(masks), strict=True)
    return sum(np.count_nonzero(np.asarray(w)[~np.asarray(m)]) for w, m in pairs)


def assert_equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def structure_of(tree: Any) -> Any:
    """The structure where a node for a leaf left dense is a leaf as well."""
    is_dense = lambda node: isinstance(node, optax.MaskedNode)
    return jax.tree.structure(tree, is_leaf=is_dense)


# Donation.

METHODS = {
    "acdc": (sj.acdc_transform, {"final_sparsity": 0.75, "phases": [2, 4, 6]}),
    "dsr": (sj.dsr_transform, CONSTANT),
    "freeze": (sj.freeze_transform, {"trainable": [("bias", False)]}),
    "gmp": (sj.gmp_transform, GRADUAL),
    "granet": (sj.granet_transform, GRADUAL | {"total_steps": 20}),
    "granet_from_sparse": (
        sj.granet_transform,
        GRADUAL | {"total_steps": 20, "initial_sparsity": 0.5},
    ),
    "itop": (sj.itop_transform, CONSTANT),
    "mest": (sj.mest_transform, CONSTANT),
    "rigl": (sj.rigl_transform, CONSTANT),
    "rigl_mean_gradient": (
        sj.rigl_transform,
        CONSTANT | {"grow": sj.scores.mean_gradient(2)},
    ),
    "set": (sj.set_transform, CONSTANT),
    "snfs": (sj.snfs_transform, CONSTANT),
    "srigl": (sj.srigl_transform, CONSTANT | {"keep_neurons": ["kernel"]}),
    "static": (sj.static_transform, {"sparsity": 0.75}),
    "top_kast": (
        sj.top_kast_transform,
        {
            "sparsity": 0.75,
            "backward_sparsity": 0.5,
            "update_interval": 2,
            "exploration": 1e-3,
        },
    ),
}
DENSE_WEIGHTS = {"freeze", "top_kast"}  # their masks are not of what is 0


def test_the_table_has_every_method():
    named = {name for name in sj.__all__ if name.endswith("_transform")}
    assert {transform.__name__ for transform, _ in METHODS.values()} == named


def assert_no_shared_buffers(params: Any, opt_state: Any) -> None:
    leaves = jax.tree.leaves((params, opt_state))
    buffers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    assert len(buffers) == len(leaves)


def donating(tx: Any) -> Any:
    return jax.jit(make_step(tx), donate_argnums=(0, 1))


def assert_donates(step: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
    """Takes steps that donate all that comes in; returns what comes out."""
    assert_no_shared_buffers(params, opt_state)
    for t in range(3):
        before = params
        grads = jax.tree.map(lambda p: jnp.cos(t + p), params)  # noqa: B023
        params, opt_state = step(params, opt_state, grads)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    return params, opt_state


@pytest.mark.parametrize("method", METHODS)
def test_params_and_state_can_be_donated_right_after_init(method):
    transform, settings = METHODS[method]
    tx = transform(optax.adamw(0.05), **settings)
    step = donating(tx)
    for _ in range(2):  # what tx itself holds must survive the first run
        params = draw(0)["body"]
        if method in DENSE_WEIGHTS:
            opt_state = tx.init(params)
        else:
            params, opt_state = sj.init_sparse(tx, params)
        params, opt_state = assert_donates(step, params, opt_state)
    if method not in DENSE_WEIGHTS:
        assert stray(params, sj.get_masks(opt_state)) == 0


@pytest.mark.parametrize("method", sorted({*METHODS} - {"top_kast"}))
def test_masks_that_the_user_gives_survive_donation(method):
    transform, settings = METHODS[method]
    params = draw(0)["body"]
    masks = sj.random_masks(jax.random.key(5), params, 0.75)
    expected = jax.tree.map(np.array, masks)
    if method != "srigl":
        settings = {k: v for k, v in settings.items() if k != "sparsity"}
    tx = transform(optax.adamw(0.05), masks=masks, **settings)
    for _ in range(2):
        params = sj.apply_masks(draw(0)["body"], masks)
        opt_state = tx.init(params)
        assert_no_shared_buffers(params, opt_state)
        for leaf in jax.tree.leaves((params, opt_state)):
            leaf.delete()  # as donation does
        assert_equal(masks, expected)


def test_a_run_under_given_masks_can_be_donated():
    masks = sj.random_masks(jax.random.key(5), draw(0), 0.75)
    expected = jax.tree.map(np.array, masks)
    tx, params = sj.static_transform(optax.sgd(0.1), masks=masks), draw(0)
    params, _ = assert_donates(donating(tx), params, tx.init(params))
    assert_equal(masks, expected)
    assert stray(params, masks) == 0


@pytest.mark.parametrize(
    "inner",
    [
        optax.contrib.schedule_free_sgd(0.1),  # its state starts from the weights
        optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    ],
    ids=["schedule_free", "multi_steps"],
)
def test_the_state_of_any_inner_optimizer_can_be_donated(inner):
    tx = granet(inner)
    start = sj.init_sparse(tx, draw(0)["body"])
    params, opt_state = assert_donates(donating(tx), *start)
    assert stray(params, sj.get_masks(opt_state)) == 0


# Whole subtrees left dense.

LABELS = {"body": "sparse", "head": "dense"}


def by_partition() -> Any:
    return optax.partition(
        {"sparse": granet(optax.adam(0.05)), "dense": optax.sgd(0.1)}, LABELS
    )


def by_masked() -> Any:
    return optax.chain(
        optax.masked(granet(optax.adam(0.05)), {"body": True, "head": False}),
        optax.masked(optax.sgd(0.1), {"body": False, "head": True}),
    )


@pytest.fixture(scope="module", params=[by_partition, by_masked])
def trained_by_label(request: pytest.FixtureRequest) -> Any:
    """Dense parameters, what `tx.init` and training make of them, and `init_sparse`."""
    tx, dense = request.param(), draw(0)
    return dense, *run(tx, dense, tx.init(dense)), sj.init_sparse(tx, dense)[0]


def test_a_subtree_can_be_left_dense_by_one_label(trained_by_label):
    dense, params, opt_state, _ = trained_by_label
    masks = sj.get_masks(opt_state)
    assert stray(params["body"], masks["body"]) == 0
    assert sj.count_active(masks) == IN_BODY and sj.count_prunable(masks) == 128
    assert np.all(params["head"]["kernel"] != dense["head"]["kernel"])


def test_masks_with_one_node_for_a_dense_subtree_fit_the_parameters(trained_by_label):
    dense, params, opt_state, started = trained_by_label
    masks = sj.get_masks(opt_state)
    whole = sj.get_masks(opt_state, params)
    assert structure_of(whole) == jax.tree.structure(params)
    assert_equal(whole["body"], masks["body"])
    assert_equal(whole["head"], {name: optax.MaskedNode() for name in params["head"]})
    for fitting in (masks, whole):
        sj.check(params, fitting)
        with pytest.raises(ValueError, match="body/kernel"):
            sj.check(dense, fitting)
        masked = sj.apply_masks(dense, fitting)
        assert stray(masked["body"], masks["body"]) == 0
        assert_equal(masked["head"], dense["head"])
        assert "head/kernel" in sj.summary(params, fitting)
    assert sj.summary(params, masks) == sj.summary(params, whole)
    assert_equal(started["head"], dense["head"])
    assert stray(started["body"], masks["body"]) > 0  # GraNet starts dense


def test_masks_of_two_labeled_subtrees_are_put_together():
    methods = {
        "gradual": sj.gmp_transform(optax.adam(0.05), **GRADUAL),
        "constant": sj.rigl_transform(optax.sgd(0.1), **CONSTANT),
    }
    tx = optax.partition(methods, {"body": "gradual", "head": "constant"})
    params, opt_state = run(tx, *sj.init_sparse(tx, draw(0)))
    masks = sj.get_masks(opt_state)
    assert stray(params, masks) == 0
    assert [int(sj.count_active(masks[name])) for name in ("body", "head")] == [32, 32]
    assert structure_of(sj.get_masks(opt_state, params)) == jax.tree.structure(params)
    assert_equal(sj.apply_masks(params, masks), params)


# Around and inside.

AROUND_AND_INSIDE = {
    "chain_around": lambda: optax.chain(optax.clip(0.5), granet(optax.adam(0.05))),
    "chain_inside": lambda: granet(optax.chain(optax.clip(0.5), optax.adam(0.05))),
    "multi_steps_around": lambda: optax.MultiSteps(granet(optax.adam(0.05)), 2),
    "multi_steps_inside": lambda: granet(
        optax.MultiSteps(optax.adam(0.05), 2).gradient_transformation()
    ),
}


@pytest.mark.parametrize("nesting", AROUND_AND_INSIDE)
def test_weights_stay_sparse_under_what_is_around_and_inside(nesting):
    tx = AROUND_AND_INSIDE[nesting]()
    params, opt_state = sj.init_sparse(tx, draw(0))
    step = jax.jit(make_step(tx))
    # Around, two calls are one step of the method; inside, each call is one.
    calls = len(STEPS) * (2 if nesting == "multi_steps_around" else 1)
    for call in range(calls):
        params, opt_state = step(params, opt_state, draw(100 + call))
        masks = sj.get_masks(opt_state)
        assert stray(params, masks) == 0
    sj.check(params, masks)
    assert sj.count_active(masks) == ACTIVE
    assert optax.tree.get(opt_state, "updates") == 2
    assert optax.tree.get(opt_state, "stray") == 0


def test_what_scales_the_updates_afterwards_is_reported():
    gmp = sj.gmp_transform(optax.scale_by_adam(), **GRADUAL)
    tx = optax.chain(gmp, optax.scale_by_learning_rate(1e-3))
    before, opt_state = run(tx, *sj.init_sparse(tx, draw(0)), range(8))
    # Step 8 is a power of two and after the last prune: it looks, and changes nothing.
    params, opt_state = run(tx, before, opt_state, [8])
    masks = sj.get_masks(opt_state)
    assert optax.tree.get(opt_state, "stray") == stray(before, masks) > 100
    with pytest.raises(ValueError, match="kernel") as refusal:
        sj.check(params, masks)
    assert str(refusal.value).endswith(".") and ". " not in str(refusal.value)
    masked = sj.apply_masks(params, masks)
    assert sj.summary(params, masks) != sj.summary(masked, masks)


def test_an_average_of_gradients_inside_is_zero_outside_the_masks():
    tx = granet(optax.chain(optax.ema(0.9), optax.scale(-0.1)))
    params, opt_state = run(tx, *sj.init_sparse(tx, draw(0)), range(6))
    masks, average = sj.get_masks(opt_state), optax.tree.get(opt_state, "ema")
    assert stray(params, masks) == stray(average, masks) == 0
    sj.check(average, masks)
    assert np.count_nonzero(average["body"]["kernel"]) > 0


def test_an_average_of_weights_outside_needs_the_masks_once_more():
    tx = granet(optax.sgd(0.1))
    params, opt_state = sj.init_sparse(tx, draw(0))
    average, step = params, jax.jit(make_step(tx))
    for t in STEPS:
        params, opt_state = step(params, opt_state, draw(100 + t))
        average = optax.incremental_update(params, average, 0.1)
    masks = sj.get_masks(opt_state)
    sj.check(params, masks)
    with pytest.raises(ValueError, match="kernel"):
        sj.check(average, masks)
    sj.check(sj.apply_masks(average, masks), masks)


# Equinox and Haiku.

X = jax.random.normal(jax.random.key(1), (8, 5))


def make_mlp() -> Any:
    """A module with functions among its leaves, and 54 weights in two kernels."""
    return eqx.nn.MLP(5, 4, 6, 1, key=jax.random.key(0))


def arrays_of(module: Any) -> Any:
    return eqx.filter(module, eqx.is_inexact_array)


def test_an_equinox_model_trains_and_is_donated_in_filter_jit():
    tx, model = granet(optax.adam(0.05)), make_mlp()
    opt_state = tx.init(arrays_of(model))

    @eqx.filter_jit(donate="all")
    def step(model: Any, opt_state: Any) -> Any:
        grads = eqx.filter_grad(lambda model: jnp.mean(jax.vmap(model)(X) ** 2))(model)
        updates, opt_state = tx.update(grads, opt_state, arrays_of(model))
        return eqx.apply_updates(model, updates), opt_state

    for _ in STEPS:
        model, opt_state = step(model, opt_state)
    masks = sj.get_masks(opt_state)
    assert stray(arrays_of(model), masks) == 0 and sj.count_active(masks) == 14
    # The masks were made from the arrays, and fit the module with its functions.
    for module in (model, arrays_of(model)):
        sj.check(module, masks)
        assert " 14 " in sj.summary(module, masks)
    masked = sj.apply_masks(make_mlp(), masks)
    assert stray(arrays_of(masked), masks) == 0
    assert jax.vmap(masked)(X).shape == (8, 4)


def test_an_equinox_module_is_masked_as_it_is():
    model = make_mlp()
    assert any(callable(leaf) for leaf in jax.tree.leaves(model))
    assert sj.count_active(sj.dense_masks(model)) == 54
    masks = sj.random_masks(jax.random.key(2), model, 0.5)
    assert sj.count_active(masks) == 27
    sparse = sj.apply_masks(model, masks)
    for layer, mask, dense in zip(sparse.layers, masks.layers, model.layers):
        expected = np.where(mask.weight, dense.weight, 0)
        np.testing.assert_array_equal(layer.weight, expected)
        np.testing.assert_array_equal(layer.bias, dense.bias)
    assert type(sparse) is type(model) and sparse.activation is model.activation
    assert np.all(jax.vmap(sparse)(X) != jax.vmap(model)(X))
    assert " 27 " in sj.summary(sparse, masks)


def test_leaves_that_are_no_float_arrays_are_left_alone():
    params = {"w": jnp.ones((4, 4)), "z": jnp.ones((4, 4), complex), "f": jnp.tanh}
    params["n"] = jnp.ones((4, 4), int)
    masks = sj.random_masks(jax.random.key(0), params, 0.5)
    assert [leaf.shape for leaf in jax.tree.leaves(masks)] == [(4, 4)]
    masked = sj.apply_masks(params, masks)
    assert np.count_nonzero(masked["w"]) == 8
    assert all(masked[name] is params[name] for name in ("z", "n", "f"))


def test_haiku_parameters_train_with_a_dense_embedding():
    def forward(tokens: jax.Array) -> jax.Array:
        return hk.Linear(4)(hk.LayerNorm(-1, True, True)(hk.Embed(7, 5)(tokens)))

    model = hk.without_apply_rng(hk.transform(forward))
    tokens, tx = jnp.arange(7), granet(optax.adam(0.05))
    dense = jax.jit(model.init)(jax.random.key(0), tokens)
    params, opt_state = sj.init_sparse(tx, dense)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean((model.apply(p, tokens) - 1) ** 2))(params)
        return make_step(tx)(params, opt_state, grads)

    for _ in STEPS:
        params, opt_state = step(params, opt_state)
    masks = sj.get_masks(opt_state)
    sj.check(params, masks)
    assert sj.count_prunable(masks) == 20 and sj.count_active(masks) == 5
    assert stray(params["linear"], masks) == 0
    assert np.all(params["embed"]["embeddings"] != 0)
