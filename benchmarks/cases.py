"""What optimizer steps are measured on: trees of weights, and optimizers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from experiments.models import create_model

PyTree = Any
After = Callable[[PyTree, PyTree], PyTree]
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _resnet50(scale: float) -> Shapes:
    """The 54 tensors of ImageNet's ResNet-50 that are pruned; outputs are scaled."""
    model = create_model("resnet50", 1000)
    images = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    for path, leaf in jax.tree.leaves_with_path(shapes["params"]):
        if leaf.ndim > 1:
            *inputs, outputs = leaf.shape
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            yield name, (*inputs, max(1, round(outputs * scale)))


def _gpt2(scale: float) -> Shapes:
    """The 12 blocks of GPT-2 small as Flax has them; the number of heads is scaled."""
    heads, size = max(1, round(12 * scale)), 64
    width = heads * size
    for block in range(12):
        for layer in "query", "key", "value":
            yield f"block_{block}/attention/{layer}/kernel", (width, heads, size)
            yield f"block_{block}/attention/{layer}/bias", (heads, size)
        yield f"block_{block}/attention/out/kernel", (heads, size, width)
        yield f"block_{block}/attention/out/bias", (width,)
        for layer, inputs, outputs in (
            ("up", width, 4 * width),
            ("down", 4 * width, width),
        ):
            yield f"block_{block}/mlp/{layer}/kernel", (inputs, outputs)
            yield f"block_{block}/mlp/{layer}/bias", (outputs,)
        for layer in "norm_1", "norm_2":
            yield f"block_{block}/{layer}/scale", (width,)
            yield f"block_{block}/{layer}/bias", (width,)


TREES: dict[str, Callable[[float], Shapes]] = {"resnet50": _resnet50, "gpt2": _gpt2}


def draw_tree(name: str, scale: float, seed: int) -> PyTree:
    """Draws values of the shapes of a network's parameters.

    Args:
        name: One of `TREES`.
        scale: Of ResNet-50's outputs, and so of its weights; of the language model's
            width, and so of the square root of its weights.
        seed: Seed of the values.

    Returns:
        float32 arrays by their paths.
    """
    draw = np.random.default_rng(seed)
    shapes = TREES[name](scale)
    return {
        path: jnp.asarray(draw.standard_normal(s, np.float32)) for path, s in shapes
    }


def _sgd() -> optax.GradientTransformation:
    """SGD with Nesterov's momentum and decay, as for ResNet-50."""
    return optax.chain(
        optax.add_decayed_weights(1e-4), optax.sgd(1e-6, momentum=0.9, nesterov=True)
    )


# Steps are small: what is timed at the end is what was at the start.
RECIPES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": functools.partial(optax.adamw, 1e-6),
}


def granet(
    inner: optax.GradientTransformation, interval: int
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer with GraNet, from dense to sparse.

    Args:
        inner: The optimizer.
        interval: Steps between topology updates; 1 makes every step but the first one.

    Returns:
        The wrapped optimizer.
    """
    return sj.granet_transform(
        inner, total_steps=10**6, end_step=10**5, update_interval=interval
    )


def optimizer_step(
    tx: optax.GradientTransformation, after: After | None = None, **options: Any
) -> Callable[[PyTree, PyTree], Any]:
    """Makes the step of an optimizer alone.

    Args:
        tx: The optimizer.
        after: (params, opt_state) -> params, what is done after each step; None for
            nothing.
        **options: Extra arguments of its update.

    Returns:
        ((params, opt_state), grads) -> ((params, opt_state), ()).
    """

    def step(state: PyTree, grads: PyTree) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params, **options)
        params = optax.apply_updates(params, updates)
        return (after(params, opt_state) if after else params, opt_state), ()

    return step
