"""Walking trees side by side: fitting by path, merging, buffers of one's own."""

from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sparsejax as sj
from sparsejax.trees import fit, merge, own_buffers, path_string

LEFT = optax.MaskedNode()
ON = jnp.ones((2, 3), bool)
PARAMS = {
    "body": [{"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, jnp.ones((2, 3))],
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}
MASKS = {
    "body": [{"kernel": ON, "bias": LEFT}, ON],
    "head": {"kernel": LEFT, "bias": LEFT},
}


class Tree(NamedTuple):
    """PARAMS as a NamedTuple."""

    body: Any
    head: Any


@pytest.mark.parametrize(
    "masks",
    [
        MASKS,
        MASKS | {"head": LEFT},
        MASKS | {"head": None},
        MASKS | {"head": {}},
        MASKS | {"head": {"kernel": None, "bias": {}}},
        {"body": [{"kernel": ON, "bias": []}, ON], "head": LEFT},
        {"body": ({"kernel": ON, "bias": None}, ON), "head": LEFT},
        flax.core.freeze(MASKS),
        Tree(**MASKS),
    ],
)
def test_masks_take_the_structure_of_the_tree_that_they_are_for(masks):
    for params, expected in (
        (PARAMS, MASKS),
        (flax.core.freeze(PARAMS), flax.core.freeze(MASKS)),
        (Tree(**PARAMS), Tree(**MASKS)),
    ):
        fitted = fit(masks, params)
        assert jax.tree.structure(fitted) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, fitted, expected)


def test_masks_fit_the_state_of_an_nnx_module_and_back():
    class Net(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    state = nnx.state(Net(), nnx.Param)
    plain = {"first": {"kernel": jnp.ones((4, 3), bool), "bias": LEFT}}
    fitted = fit(plain, state)
    assert path_string(jax.tree_util.tree_leaves_with_path(fitted)[0][0]) == (
        "first/kernel"
    )
    back = fit(fitted, nnx.to_pure_dict(state))
    assert jax.tree.structure(back) == jax.tree.structure(plain)
    assert (
        sj.count_active(
            sj.get_masks(
                sj.static_transform(optax.sgd(0.1), sparsity=0.5).init(state),
                nnx.to_pure_dict(state),
            )
        )
        == 6
    )


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (MASKS | {"more": ON}, "params have nothing at 'more'"),
        (MASKS | {"head": {"kernel": LEFT}}, "masks have nothing at 'head/bias'"),
        (MASKS | {"body": [LEFT, ON, ON]}, "params have nothing at 'body/2'"),
        (MASKS | {"body": [LEFT, ON[:1]]}, r"at 'body/1': .* shape \(2, 3\) is needed"),
        (MASKS | {"body": [LEFT, 1.0 * ON]}, "at 'body/1': .* got float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_their_path(masks, message):
    with pytest.raises(ValueError, match=f"^masks do not fit params.*{message}"):
        fit(masks, PARAMS)


def test_masks_of_several_trees_are_merged():
    a = {"x": 1, "y": LEFT, "z": LEFT}
    b = {"x": LEFT, "y": {"u": 2, "v": LEFT}, "z": LEFT}
    assert merge(a) == a
    assert merge(a, b) == {"x": 1, "y": {"u": 2, "v": LEFT}, "z": LEFT}
    assert merge(b, LEFT, a) == merge(a, b)
    c = {"x": LEFT, "y": {"u": LEFT, "v": 3}, "z": {"w": 4}}
    assert merge(a, b, c) == {"x": 1, "y": {"u": 2, "v": 3}, "z": {"w": 4}}
    with pytest.raises(ValueError, match="masks must be one a leaf"):
        merge(a, {"x": 5, "y": LEFT, "z": LEFT})


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def test_no_two_leaves_are_one_buffer_nor_one_of_others():
    x, y = jnp.ones(3), jnp.zeros(4)
    tree = {"a": x, "b": x, "c": y, "d": np.ones(2), "e": "text"}
    owned = own_buffers(tree, others=[y])
    assert len({*pointers([owned["a"], owned["b"], owned["c"], y])}) == 4
    assert owned["a"] is x and owned["d"] is tree["d"] and owned["e"] == "text"
    jax.tree.map(np.testing.assert_array_equal, owned, tree)


@pytest.mark.parametrize("masks", [None, {"w": jnp.eye(4, dtype=bool)}])
def test_params_and_state_can_be_donated_right_after_init(masks):
    params = {"w": jnp.ones((4, 4)), "b": jnp.zeros(4)}
    given = masks and masks | {"b": LEFT}
    inner = optax.chain(optax.adam(0.1), optax.ema(0.9))
    tx = sj.granet_transform(
        inner, total_steps=9, end_step=4, update_interval=2, masks=given
    )
    sparse, state = sj.init_sparse(tx, params)
    everything = pointers((params, given, sparse, state))
    assert len(set(everything)) == len(everything)
    step = jax.jit(
        lambda params, state: tx.update(params, state, params), donate_argnums=(0, 1)
    )
    step(sparse, state)
    np.testing.assert_array_equal(params["w"], 1)
    if masks:
        assert masks["w"].sum() == 4
