"""Masks at one bit a weight train as masks at one byte do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import STEPS, gradients, make_cell, make_params, noise_of

import sparsejax as sj


def trained(tx, update_topology):
    @jax.jit
    def step(params, opt_state, noise):
        grads = gradients(params, noise)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def ordinary(params, opt_state, noise):
        grads = gradients(params, noise)
        updates, opt_state = tx.update(grads, opt_state, params, update_topology=False)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = sj.init_sparse(tx, make_params())
    for number in range(STEPS):
        apart = not update_topology and not tx.is_update_step(number)
        take = ordinary if apart else step
        params, opt_state = take(params, opt_state, noise_of(number))
    return params, opt_state


@pytest.mark.parametrize("update_topology", [True, False], ids=["one-program", "apart"])
def test_masks_are_the_same_to_the_bit_and_weights_to_rounding(update_topology):
    plain = make_cell("granet_sparse", "adamw")
    packed = sj.with_packed_masks(plain)
    expected, expected_state = trained(plain, update_topology)
    params, state = trained(packed, update_topology)
    # Two programs: with jax 0.12 products and sums are fused elsewhere in each.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        params,
        expected,
    )
    masks = sj.get_masks(expected_state)
    jax.tree.map(np.testing.assert_array_equal, sj.get_masks(state), masks)
    assert not np.array_equal(masks["conv"]["kernel"], True)
    packed_mask = state.masks["conv"]["kernel"]
    assert packed_mask.bits.shape == (288 // 8,)
    assert packed_mask.shape.tolist() == [3, 3, 4, 8]


def test_it_can_be_wrapped_again():
    tx = sj.with_packed_masks(sj.static_transform(optax.sgd(0.1), sparsity=0.75))
    params = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
    for outer in (optax.MultiSteps(tx, 2), optax.chain(optax.clip(1.0), tx)):
        start, state = sj.init_sparse(outer, params)
        assert jax.tree.structure(state) == jax.tree.structure(
            optax.tree.map_params(outer, lambda leaf: leaf, state)
        )
        for _ in range(2):
            updates, state = outer.update(params, state, start)
            start = optax.apply_updates(start, updates)
        assert int(jnp.sum(start["w"] != 0)) == 16


def test_only_a_sparse_transformation_can_be_packed():
    with pytest.raises(ValueError, match="tx must be what sparsify"):
        sj.with_packed_masks(
            optax.chain(sj.static_transform(optax.sgd(0.1), sparsity=0.5))
        )


def test_a_state_of_plain_masks_is_refused():
    tx = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
    params, state = sj.init_sparse(tx, {"w": jnp.ones((4, 4))})
    with pytest.raises(ValueError, match=r"^state must have packed masks"):
        sj.with_packed_masks(tx).update(params, state, params)
