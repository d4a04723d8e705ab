"""Measures of masks and gradients, held against NumPy."""

from itertools import accumulate

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import sparsejax as sj

SHAPES = {"conv": (3, 3, 4, 6), "dense": (6, 5), "bias": (5,)}


def draw_masks(seed, density=0.15):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(shape) < density for name, shape in SHAPES.items()}
    return masks | {"bias": optax.MaskedNode()}


class TestItopRate:
    def test_is_the_share_of_weights_that_were_ever_active(self):
        history = [draw_masks(seed) for seed in range(5)]
        ever = {k: np.any([m[k] for m in history], axis=0) for k in ("conv", "dense")}
        found = sum(int(mask.sum()) for mask in ever.values()) / (216 + 30)
        assert sj.itop_rate(history).item() == np.float32(found)
        layers = sj.itop_rate(history, "layer")
        assert layers["dense"] == np.float32(ever["dense"].mean())

    def test_of_a_running_union_it_is_the_same_and_never_falls(self):
        history = [draw_masks(seed) for seed in range(4)]
        unions = list(accumulate(history, sj.union))
        rates = [sj.itop_rate([explored]).item() for explored in unions]
        assert rates == sorted(rates)
        assert rates == [sj.itop_rate(history[: i + 1]).item() for i in range(4)]
        assert rates[0] == sj.density(history[0]).item()

    def test_needs_masks_that_fit(self):
        with pytest.raises(ValueError, match="history must hold at least one"):
            sj.itop_rate([])
        with pytest.raises(ValueError, match="masks do not fit"):
            sj.itop_rate([draw_masks(0), {"conv": np.ones((2, 2), bool)}])


class TestGradientFlow:
    def test_is_the_squared_norm_over_active_weights(self):
        masks, rng = draw_masks(0), np.random.default_rng(1)
        grads = {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
        flows = sj.gradient_flow(grads, masks, "layer")
        expected = {k: np.sum(grads[k][masks[k]] ** 2.0) for k in ("conv", "dense")}
        for name, value in expected.items():
            np.testing.assert_allclose(flows[name], value, rtol=1e-6)
        total = sj.gradient_flow(grads, masks)
        np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-6)

    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
    def test_sums_half_precision_in_float32(self, dtype):
        """In their own dtypes the sum would stall, or the squares vanish."""
        grads = jnp.full((100, 100), 1e-4, dtype)
        masks = jnp.ones((100, 100), bool)
        one = float(np.asarray(grads)[0, 0])
        flow = sj.gradient_flow(grads, masks).item()
        assert flow == pytest.approx(10_000 * one**2, rel=1e-4)

    def test_counts_what_is_not_finite_only_where_it_is_active(self):
        grads, masks = jnp.array([[jnp.nan, 2.0]]), jnp.array([[False, True]])
        assert sj.gradient_flow(grads, masks).item() == 4.0
        assert np.isnan(sj.gradient_flow(grads, ~masks).item())


class TestDeadUnits:
    @pytest.mark.parametrize("seed", range(3))
    def test_counts_units_as_loops_do(self, seed):
        masks = draw_masks(seed, density=0.03)
        dead = {
            name: sum(not masks[name][..., j].any() for j in range(SHAPES[name][-1]))
            for name in ("conv", "dense")
        }
        unread = {
            name: sum(not masks[name][..., i, :].any() for i in range(SHAPES[name][-2]))
            for name in ("conv", "dense")
        }
        assert sum(dead.values()) > 0 and sum(unread.values()) > 0
        found = sj.dead_units(masks, "layer"), sj.dead_inputs(masks, "layer")
        for expected, counts in zip((dead, unread), found):
            assert {name: int(counts[name]) for name in expected} == expected
            assert counts["bias"] == optax.MaskedNode()
        assert sj.dead_units(masks) == sum(dead.values())
        assert sj.dead_inputs(masks) == sum(unread.values())

    def test_units_of_attention_and_of_equinox_are_on_their_own_axes(self):
        masks = {
            "query": {"kernel": jnp.ones((5, 2, 3), bool).at[:, 1, 2].set(False)},
            "out": {"kernel": jnp.ones((2, 3, 5), bool).at[1, 2].set(False)},
        }
        assert jax.tree.map(int, sj.dead_units(masks, "layer")) == {
            "query": {"kernel": 1},
            "out": {"kernel": 0},
        }
        assert jax.tree.map(int, sj.dead_inputs(masks, "layer")) == {
            "query": {"kernel": 0},
            "out": {"kernel": 1},
        }
        linear = eqx.nn.Linear(4, 3, use_bias=False, key=jax.random.key(0))
        mask = jnp.ones((3, 4), bool).at[1].set(False)
        linear = eqx.tree_at(lambda layer: layer.weight, linear, mask)
        assert sj.dead_units(linear) == 1 and sj.dead_inputs(linear) == 0

    def test_a_dead_unit_gives_the_same_whatever_goes_in(self):
        masks = {"kernel": jnp.array(draw_masks(3, 0.05)["conv"])}
        kernel = sj.apply_masks({"kernel": jnp.ones(SHAPES["conv"])}, masks)["kernel"]
        images = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
        out = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        constant = np.all(np.asarray(out) == 0, axis=(0, 1, 2))
        assert 0 < constant.sum() == sj.dead_units(masks)

    def test_leaves_without_units_have_none(self):
        masks = {"scale": jnp.zeros(3, bool), "kernel": jnp.zeros((2, 3), bool)}
        assert sj.dead_units(masks) == 3
        assert sj.dead_inputs(masks) == 2
        assert sj.empty_layers(masks) == 2

    def test_empty_layers_have_weights_but_no_active_one(self):
        masks = {
            "a": jnp.zeros((2, 2), bool),
            "b": jnp.eye(2, dtype=bool),
            "c": jnp.zeros((0, 3), bool),
        }
        assert sj.empty_layers(masks) == 1
