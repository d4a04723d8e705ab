"""Learning AutoS's pruning criterion: labels of an iterative run, fitting, saving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import optax

import sparsejax as sj
from experiments.record.files import write_bytes_atomically
from sparsejax.checks import check_fraction
from sparsejax.parameters import Prunable

PyTree = Any


class Examples(NamedTuple):
    """Weights to learn from, or to test on.

    Attributes:
        features: float32[n, 2].
        labels: float32[n] in [0, 1].
    """

    features: jax.Array
    labels: jax.Array


def iterative_masks(
    train: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    counts: Sequence[int],
    prunable: Prunable = None,
) -> list[PyTree]:
    """Prunes by trained magnitude and rewinds to the first weights, round by round.

    Args:
        train: A pure function (params, masks) -> trained params, inactive weights kept
            0; it is traced, once for all rounds.
        params: The initial weights.
        counts: The active weights after each round; see `sparsejax.lottery_counts`.
        prunable: Which leaves are pruned; see `sparsejax.layer_rules`.

    Returns:
        The masks after each round.
    """

    def next_round(
        carry: tuple[PyTree, PyTree], keep: jax.Array
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
        trained = train(*carry)
        start, masks = sj.lottery_ticket(trained, params, carry[1], keep=keep)
        return (start, masks), masks

    # A scan, so that training is compiled once.
    first = jax.tree.map(jnp.asarray, params), sj.dense_masks(params, prunable)
    _, rounds = jax.lax.scan(next_round, first, jnp.asarray(counts))

    def after(index: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[index], rounds)

    return [after(index) for index in range(len(counts))]


def split_weights(
    key: jax.Array, features: PyTree, labels: PyTree, held_out: float
) -> tuple[Examples, Examples]:
    """Puts the weights of all layers in a row and holds some out, at random.

    Args:
        key: A JAX PRNG key.
        features: What `sparsejax.auto_s_features` gives.
        labels: What `sparsejax.auto_s_labels` gives.
        held_out: The share to hold out, in (0, 1).

    Returns:
        (weights to fit to, weights to test on); no weight is in both.

    Raises:
        ValueError: If the share is out of range.
    """
    check_fraction("held_out", held_out)
    rows = jnp.concatenate([x.reshape(-1, 2) for x in jax.tree.leaves(features)])
    values = jnp.concatenate([y.reshape(-1) for y in jax.tree.leaves(labels)])
    order = jax.random.permutation(key, len(values))
    test, fit = jnp.split(order, [round(held_out * len(values))])
    return Examples(rows[fit], values[fit]), Examples(rows[test], values[test])


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

    Args:
        network: From features float32[..., 2] to scores float32[...], such as
            `experiments.models.mlp.ScoreMLP`.
        key: A JAX PRNG key, for the network's weights and the order of examples.
        examples: What to fit to.
        epochs: Passes over them.
        batch_size: Examples of a step, at most all of them; in each epoch those left
            over, others each time, are left out.
        learning_rate: Adam's.

    Returns:
        The network's variables.
    """
    of_weights, of_order = jax.random.split(key)
    variables = network.init(of_weights, examples.features[:1])
    optimizer = optax.adam(learning_rate)
    size = len(examples.labels)
    batch_size = min(batch_size, size)
    steps = size // batch_size

    def loss(variables: PyTree, batch: Examples) -> jax.Array:
        scores: Any = network.apply(variables, batch.features)
        return jnp.mean((scores - batch.labels) ** 2)

    def step(carry: Any, indices: jax.Array) -> tuple[Any, None]:
        variables, state = carry
        batch = jax.tree.map(lambda leaf: leaf[indices], examples)
        updates, state = optimizer.update(jax.grad(loss)(variables, batch), state)
        return (optax.apply_updates(variables, updates), state), None

    def epoch(carry: Any, key: jax.Array) -> tuple[Any, None]:
        order = jax.random.permutation(key, size)[: steps * batch_size]
        return jax.lax.scan(step, carry, order.reshape(steps, batch_size))

    @jax.jit
    def fit(variables: PyTree, keys: jax.Array) -> PyTree:
        carry = (variables, optimizer.init(variables))
        return jax.lax.scan(epoch, carry, keys)[0][0]

    return fit(variables, jax.random.split(of_order, epochs))


def save_score(path: Path, variables: PyTree) -> None:
    """Saves a scoring network's variables, whole or not at all.

    Args:
        path: The file, in MessagePack.
        variables: What `fit_score` gives.
    """
    content = flax.serialization.to_bytes(jax.device_get(variables))
    write_bytes_atomically(path, content)


def load_score(path: Path, network: nn.Module) -> PyTree:
    """Reads the variables of a scoring network.

    Args:
        path: What `save_score` wrote.
        network: The network that they belong to.

    Returns:
        The variables.

    Raises:
        ValueError: If the file holds those of another network.
    """
    like = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2)))
    variables = flax.serialization.from_bytes(like, path.read_bytes())
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (like, variables)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"path must hold the variables of network, of shapes {shapes[0]}; got "
            f"{shapes[1]} in '{path}'."
        )
    return variables
