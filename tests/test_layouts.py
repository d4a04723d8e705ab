"""Leaves together in rows and leaves apart: the same numbers and the same masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import as_if_on
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsejax as sj
from sparsejax.layouts import Apart, Rows, layout_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Leaves that fill no row, a row, and some rows and a part; one without an entry.
SHAPES = ((3, 5), (), (64, 64), (0, 4), (3, 3, 16, 40), (4096,), (7, 1201))
settled = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in SHAPES]


def test_packing_keeps_every_entry_and_fills_with_zeros():
    leaves, rows = draw(0), Rows(SHAPES)
    (packed,) = rows.pack(leaves)
    assert packed.shape[1] == 4096
    assert sum(int((leaf != 0).sum()) for leaf in leaves) == int((packed != 0).sum())
    for leaf, back in zip(leaves, rows.unpack([packed])):
        np.testing.assert_array_equal(leaf, back)


def test_a_tree_of_small_leaves_has_narrow_rows():
    (packed,) = Rows(((3,), (2, 2))).pack([jnp.ones(3), jnp.ones((2, 2))])
    assert packed.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@settled
@given(seeds, st.floats(0, 1))
def test_both_count_and_complement_alike(seed, share):
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(rng.random(shape) < share) for shape in SHAPES]
    expected = np.array([np.sum(leaf) for leaf in leaves])
    for layout in Apart(SHAPES), Rows(SHAPES):
        packed = layout.pack(leaves)
        counted = layout.count([[mask, ~mask & mask] for mask in packed])
        np.testing.assert_array_equal(counted, [expected, np.zeros(len(SHAPES))])
        np.testing.assert_array_equal(
            layout.count([[mask] for mask in packed]), expected[None]
        )
        inverse = layout.complement(packed)
        for leaf, back in zip(leaves, layout.unpack(inverse)):
            np.testing.assert_array_equal(~leaf, back)
        np.testing.assert_array_equal(
            layout.count([[mask] for mask in inverse])[0], layout.sizes - expected
        )


def test_positions_go_on_where_asked_to():
    apart, rows = Apart(SHAPES).positions(jnp.int32(7)), Rows(SHAPES)
    numbered = rows.unpack(rows.positions(jnp.int32(7)))
    for leaf, a, b in zip(draw(0), apart, numbered):
        expected = 7 + np.arange(leaf.size).reshape(leaf.shape)
        np.testing.assert_array_equal(a, expected)
        np.testing.assert_array_equal(b, expected)


def test_leaves_are_together_on_one_device_alone():
    leaves = [jnp.ones(3), jnp.ones(2)]
    with as_if_on(1):
        assert isinstance(layout_of(leaves), Rows)
        assert isinstance(layout_of(leaves[:1]), Apart)
    with as_if_on(8):
        assert isinstance(layout_of(leaves), Apart)


def train(devices: int, tx, params, grads) -> tuple:
    """Takes three steps, the last two of them updates."""
    with as_if_on(devices):
        step = jax.jit(tx.update)
        params, state = jax.jit(lambda params: sj.init_sparse(tx, params))(params)
        for _ in range(3):
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        return sj.get_masks(state), params, state.figures


LAYERS = [(3, 5), (64, 64), (3, 3, 16, 40), (7, 1201)]
plan = {"total_steps": 10, "end_step": 4, "update_interval": 1}
METHODS = {
    "granet": lambda tx: sj.granet_transform(tx, **plan),
    "granet_st": lambda tx: sj.granet_transform(tx, initial_sparsity=0.5, **plan),
    "gmp": lambda tx: sj.gmp_transform(
        tx, final_sparsity=0.8, end_step=4, update_interval=1
    ),
    "dsr": lambda tx: sj.dsr_transform(
        tx, sparsity=0.8, total_steps=10, update_interval=1
    ),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.float32) for name in METHODS), ("granet_st", jnp.bfloat16)],
)
def test_a_method_gives_the_same_masks_in_both(name, dtype):
    # Rounded, so that many are equal, and some gradients are 0.
    rng = np.random.default_rng(3)
    params, grads = (
        {
            **{
                str(i): jnp.asarray(np.round(rng.standard_normal(s), 1), dtype)
                for i, s in enumerate(LAYERS)
            },
            "bias": jnp.ones(5, dtype),
        }
        for _ in range(2)
    )
    tx = METHODS[name](optax.sgd(0.01, momentum=0.9))
    together, apart = (train(devices, tx, params, grads) for devices in (1, 8))
    assert int(together[2].updates) >= 2
    assert int(together[2].grown) > 0 or name == "gmp"
    masks, weights, figures = zip(together, apart)
    jax.tree.map(np.testing.assert_array_equal, *masks)
    jax.tree.map(np.testing.assert_array_equal, *figures)
    # Another program may round the optimizer's sums otherwise.
    rounding = 4 * float(jnp.finfo(dtype).eps)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=rounding
        ),
        *weights,
    )
