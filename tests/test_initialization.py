"""What every method of pruning before training keeps, and SNIP's and GraSP's scores.

`test_initialization_oracles.py` has the rules of their authors.
"""

import functools
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 6)), "b": np.zeros(6), "c": RNG.normal(size=(6, 2))}
PARAMS = jax.tree.map(np.float32, PARAMS)
BATCHES = [
    (RNG.normal(size=(8, 5)).astype("f4"), RNG.normal(size=(8, 2)).astype("f4"))
    for _ in range(3)
]


TRACES = Counter()


def outputs(params, batch):
    TRACES["outputs"] += 1
    return jnp.tanh(batch[0] @ params["a"] + params["b"]) @ params["c"]


def loss(params, batch, temperature=1.0):
    return jnp.mean((outputs(params, batch) / temperature - batch[1]) ** 2)


METHODS = {
    "auto_s": functools.partial(sj.auto_s, score_fn=lambda f: f[0] * f[1]),
    "drive": functools.partial(sj.drive, rounds=2),
    "force": functools.partial(sj.force, rounds=2),
    "grasp": sj.grasp,
    "iterative_snip": functools.partial(sj.force, rounds=2, may_return=False),
    "magnitude": sj.magnitude_pruning,
    "random": sj.random_pruning,
    "random_uniform": functools.partial(sj.random_pruning, distribution="uniform"),
    "snip": sj.snip,
    "synflow": functools.partial(sj.synflow, rounds=3),
}
DATA_FREE = {"magnitude", "random", "random_uniform", "synflow"}
every_method = pytest.mark.parametrize("name", METHODS)


def prune(name, params, batches, sparsity, key=0, model=(loss, outputs), **options):
    """Calls a method: all in the same way, but for what SynFlow takes for a loss."""
    function = model[name == "synflow"]
    key = jax.random.key(key)
    return METHODS[name](function, params, batches, key, sparsity, **options)


@functools.cache
def masks_of(name):
    return prune(name, PARAMS, iter(BATCHES), 0.7)


def numpy_gradient(p, temperature=1):
    """The mean gradient over all batches in float64, by hand."""
    total = {"a": 0.0, "c": 0.0}
    for x, y in BATCHES:
        h = np.tanh(x @ p["a"] + p["b"])
        e = 2 * (h @ p["c"] / temperature - y) / y.size / temperature
        total["c"] += h.T @ e / len(BATCHES)
        total["a"] += x.T @ (e @ p["c"].T * (1 - h**2)) / len(BATCHES)
    return total


def test_scores_are_those_of_numpy_and_finite_differences():
    wide = jax.tree.map(np.float64, PARAMS)
    g, dense, eps = numpy_gradient(wide), sj.dense_masks(PARAMS), 1e-5
    warm = numpy_gradient(wide, 2)
    shifted = [
        numpy_gradient({**wide, **{n: wide[n] + s * eps * warm[n] for n in g}}, 2)
        for s in (1, -1)
    ]
    snip = sj.snip_scores(loss, PARAMS, iter(BATCHES), dense)
    grasp = sj.grasp_scores(loss, PARAMS, iter(BATCHES), dense, temperature=2)
    for n in g:
        product = (shifted[0][n] - shifted[1][n]) / (2 * eps)
        np.testing.assert_allclose(snip[n], abs(wide[n] * g[n]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(grasp[n], wide[n] * product, rtol=1e-3, atol=1e-5)


@every_method
def test_counts_are_exact_and_jit_equals_eager(name):
    masks = masks_of(name)
    assert sj.count_active(masks) == sj.keep_count(0.7, 42)
    assert isinstance(masks["b"], optax.MaskedNode)
    traced = jax.jit(lambda p, b: prune(name, p, b, 0.7))(PARAMS, BATCHES)
    assert sj.jaccard(masks, traced) == 1


def sharded(batches):
    """The batches as global arrays, an example on each of eight devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for batch in batches:
        x, y = jax.device_put(batch, NamedSharding(mesh, P("data")))
        assert {shard.data.shape for shard in x.addressable_shards} == {(1, 5)}
        yield x, y


@every_method
def test_an_iterator_over_sharded_batches_gives_the_same_masks(name):
    masks = prune(name, PARAMS, sharded(BATCHES), 0.7)
    assert sj.jaccard(masks_of(name), masks) == 1


@every_method
def test_a_second_call_reuses_what_the_first_has_compiled(name):
    first = masks_of(name)
    compiled = Counter()

    def count(event, duration, **_):
        compiled[event] += 1

    jax.monitoring.register_event_duration_secs_listener(count)
    before = TRACES["outputs"]
    try:
        second = prune(name, PARAMS, iter(BATCHES), 0.7)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert sj.jaccard(first, second) == 1
    assert TRACES["outputs"] == before
    assert compiled["/jax/core/compile/backend_compile_duration"] == 0


@every_method
def test_only_random_masks_depend_on_the_key(name):
    assert sj.jaccard(masks_of(name), prune(name, PARAMS, BATCHES, 0.7)) == 1
    other = prune(name, PARAMS, BATCHES, 0.7, key=1)
    assert (sj.jaccard(masks_of(name), other) < 1) == name.startswith("random")


def stacked_outputs(params, batch):
    """Nested bfloat16 parameters, two layers of them in one leaf."""
    x = batch[0].astype(jnp.bfloat16)
    for kernel in params["blocks"][0]["kernel"]:
        x = jnp.tanh(x @ kernel)
    return (x @ params["head"]).astype(jnp.float32)


def stacked_loss(params, batch, temperature=1.0):
    return jnp.mean((stacked_outputs(params, batch) / temperature - batch[1]) ** 2)


@every_method
def test_nested_stacked_bfloat16_parameters_and_a_layer_of_its_own_sparsity(name):
    params = {
        "blocks": ({"kernel": RNG.normal(size=(2, 5, 5))},),
        "head": RNG.normal(size=(5, 2)),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    prunable = [("kernel", sj.LayerRule(stacked=True)), ("head", 0.4)]
    model = (stacked_loss, stacked_outputs)
    masks = prune(name, params, BATCHES, 0.7, model=model, prunable=prunable)
    assert sj.count_active(masks) == 18 and int(masks["head"].sum()) == 6
    trained = sj.static_transform(optax.sgd(0.1), masks=masks, prunable=prunable)
    params, _ = sj.init_sparse(trained, params)
    assert params["head"].dtype == jnp.bfloat16
    assert [int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(params)] == [12, 6]


@every_method
def test_refusals_and_warnings(name):
    bad = [BATCHES[0], (BATCHES[1][0] * np.nan, BATCHES[1][1])]
    if name in DATA_FREE:
        assert sj.jaccard(masks_of(name), prune(name, PARAMS, bad, 0.7)) == 1
    else:
        with pytest.raises(ValueError, match="batch 1 gives"):
            prune(name, PARAMS, bad, 0.5)
        with pytest.raises(ValueError, match="at least one batch"):
            prune(name, PARAMS, [], 0.5)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        prune(name, PARAMS, BATCHES, 1.0)
    # One weight for two layers.
    if name == "random":  # ERK leaves no layer empty
        with pytest.raises(ValueError, match="less than one a layer"):
            prune(name, PARAMS, BATCHES, 0.98)
        return
    with pytest.warns(sj.EmptyLayerWarning, match=r"1 of 2 layers .*'[ac]'"):
        prune(name, PARAMS, BATCHES, 0.98)
    with warnings.catch_warnings():
        warnings.simplefilter("error", sj.EmptyLayerWarning)
        with pytest.raises(sj.EmptyLayerWarning, match=r"'a'|'c'"):
            prune(name, PARAMS, BATCHES, 0.98)


GRADS = jax.tree.map(np.ones_like, PARAMS)
TRAINING = {
    "static": functools.partial(sj.static_transform, optax.sgd(0.1)),
    "granet": functools.partial(
        sj.granet_transform,
        optax.sgd(0.1),
        total_steps=4,
        end_step=1,
        update_interval=1,
        initial_sparsity=0.7,
        final_sparsity=0.8,
    ),
}


@functools.cache
def compiled_update(training):
    """One for all: masks are in the state."""
    return jax.jit(TRAINING[training](masks=masks_of("snip")).update)


@every_method
def test_masks_start_static_and_dynamic_training(name):
    masks = masks_of(name)
    for training, final in (("static", 0.7), ("granet", 0.8)):
        tx = TRAINING[training](masks=masks)
        params, state = sj.init_sparse(tx, PARAMS)
        assert sj.jaccard(sj.get_masks(state), masks) == 1
        for _ in range(2):
            updates, state = compiled_update(training)(GRADS, state, params)
            params = optax.apply_updates(params, updates)
        active = sj.get_masks(state)
        assert sj.count_active(active) == sj.keep_count(final, 42)
        assert all(np.all(np.asarray(params[n])[~active[n]] == 0) for n in "ac")


@pytest.mark.parametrize("decay", ["exponential", "linear"])
@pytest.mark.parametrize("may_return", [True, False])
def test_force_has_exact_counts_and_is_snip_at_one_round(may_return, decay):
    options = {"may_return": may_return, "decay": decay}
    one = sj.force(loss, PARAMS, BATCHES, None, 0.7, rounds=1, **options)
    assert sj.jaccard(one, sj.snip(loss, PARAMS, BATCHES, None, 0.7)) == 1
    many = sj.force(loss, PARAMS, BATCHES, None, 0.7, rounds=4, **options)
    assert sj.count_active(many) == sj.keep_count(0.7, 42)
