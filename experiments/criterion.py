"""Learning AutoS's pruning criterion: labels of an iterative run, fitting, saving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from experiments import files, fit
from sparsejax.checks import check_fraction
from sparsejax.parameters import Prunable

PyTree = Any


class ScoreMLP(nn.Module):
    """Scores weights by their features; two hidden layers, their width is our choice.

    The paper's own network is Linear(2, 64)-BatchNorm-ReLU-Linear(64, 3072)-BatchNorm-
    ReLU, whose output is taken for an image of 32 x 32 x 3 and goes through ResNet-18.
    This one has no batch normalization: features arrive normalized, and a weight's
    score does not depend on which others are scored with it.
    """

    width: int = 64

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Scores weights: float32[..., 2], see `sj.auto_s_features` -> float32[...]."""
        x = nn.relu(nn.Dense(self.width)(features))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1)(x)[..., 0]


class Examples(NamedTuple):
    """Weights to learn from, or to test on: float32[n, 2] and float32[n] in [0, 1]."""

    features: jax.Array
    labels: jax.Array


def iterative_masks(
    train: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    counts: Sequence[int],
    prunable: Prunable = None,
) -> list[PyTree]:
    """Prunes by trained magnitude and rewinds: the masks after each round.

    `train` is a pure function (params, masks) -> trained params, inactive weights kept
    0; `counts` are the active weights after each round, see `sj.lottery_counts`.
    """

    def next_round(carry: tuple[PyTree, PyTree], keep: jax.Array) -> Any:
        trained = train(*carry)
        start, masks = sj.lottery_ticket(trained, params, carry[1], keep=keep)
        return (start, masks), masks

    # A scan, so that training is compiled once.
    first = jax.tree.map(jnp.asarray, params), sj.dense_masks(params, prunable)
    _, rounds = jax.lax.scan(next_round, first, jnp.asarray(counts))
    return [fit.take(rounds, index) for index in range(len(counts))]


def split_weights(
    key: jax.Array, features: PyTree, labels: PyTree, held_out: float
) -> tuple[Examples, Examples]:
    """Splits the weights of all layers at random: (to fit to, held out)."""
    check_fraction("held_out", held_out)
    rows = jnp.concatenate([x.reshape(-1, 2) for x in jax.tree.leaves(features)])
    values = jnp.concatenate([y.reshape(-1) for y in jax.tree.leaves(labels)])
    order = jax.random.permutation(key, len(values))
    test, chosen = jnp.split(order, [round(held_out * len(values))])
    return Examples(rows[chosen], values[chosen]), Examples(rows[test], values[test])


def fit_score(
    network: nn.Module,
    key: jax.Array,
    examples: Examples,
    *,
    epochs: int = 10,
    batch_size: int = 1024,
    learning_rate: float = 0.01,
) -> PyTree:
    """Fits a scoring network by mean squared error with Adam; defaults are the paper's.

    In each epoch the examples that fill no batch, others each time, are left out.
    """
    of_weights, of_order = jax.random.split(key)
    variables = network.init(of_weights, examples.features[:1])
    optimizer, size = optax.adam(learning_rate), len(examples.labels)
    batch_size = min(batch_size, size)
    used = size // batch_size * batch_size

    def loss(variables: PyTree, batch: Examples) -> jax.Array:
        scores: Any = network.apply(variables, batch.features)
        return jnp.mean((scores - batch.labels) ** 2)

    @jax.jit
    def learn(variables: PyTree, keys: jax.Array) -> PyTree:
        shuffle = lambda key: jax.random.permutation(key, size)[:used]
        order = jax.vmap(shuffle)(keys).reshape(-1, batch_size)
        state = fit.State(variables, optimizer.init(variables))
        return fit.descend(fit.at(loss, examples), optimizer, state, order)[0].params

    return learn(variables, jax.random.split(of_order, epochs))


def save_score(path: Path, variables: PyTree) -> None:
    """Saves a scoring network's variables, whole or not at all."""
    files.save_state(path, variables)


def load_score(path: Path, network: nn.Module) -> PyTree:
    """Loads the variables of a scoring network, which must fit it."""
    like = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2)))
    variables = files.load_state(path, like)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (like, variables)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"path must hold the variables of network, of shapes {shapes[0]}; got "
            f"{shapes[1]} in '{path}'."
        )
    return variables
