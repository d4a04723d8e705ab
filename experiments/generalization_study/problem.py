"""Examples of a signal patch and a noise patch, and the network that sees both.

An example of class y in 1 .. K is two patches of d numbers,

    x1 = mu_y,    x2 = xi ~ N(0, s^2 I_d),

with K signals mu_k, orthogonal and of one norm. Signal k lies on its own coordinates.
Every class has m neurons, which read both patches with the same weights, and a second
layer of ones that is not trained:

    F_k(x) = 1/m sum_r phi(<w_kr, x1>) + phi(<w_kr, x2>),    phi(z) = max(0, z)^q.

The loss is the cross-entropy of softmax(F). What generalises is <w, mu>: the noise of a
new example is independent of all that was learned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

PyTree = Any


class Examples(NamedTuple):
    """A data set.

    Attributes:
        labels: int32[n], each class as often.
        noise: float32[n, d], the noise patches.
    """

    labels: jax.Array
    noise: jax.Array


class Measures(NamedTuple):
    """What is measured of a trained network, each a float32 scalar.

    Attributes:
        train_loss: Mean cross-entropy over the training examples, in nats.
        train_accuracy: In [0, 1].
        test_loss: Mean cross-entropy over the test examples, in nats.
        test_accuracy: In [0, 1].
        signal: How far weights are aligned with the signal: max_r <w_yr, mu_y>, a mean
            over the classes y.
        noise: The same with the noise of training examples: max_r <w_yr, xi>, a mean
            over the examples.
        test_noise: The same with the noise of test examples.
    """

    train_loss: jax.Array
    train_accuracy: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    signal: jax.Array
    noise: jax.Array
    test_noise: jax.Array


def signals(config: ConfigDict) -> np.ndarray:
    """Makes the signal of each class.

    Args:
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        float32[K, d]: `signal_strength` times a unit vector, which has equal entries on
        `signal_support` coordinates of its own and zeros elsewhere.
    """
    support = config.signal_support
    unit = np.kron(np.eye(config.classes), np.full(support, support**-0.5))
    padded = np.zeros((config.classes, config.dimension), np.float32)
    padded[:, : unit.shape[1]] = config.signal_strength * unit
    return padded


def draw_examples(
    key: jax.Array, count: int, noise_std: Any, config: ConfigDict
) -> Examples:
    """Draws examples.

    Args:
        key: A JAX PRNG key.
        count: How many, a multiple of the number of classes.
        noise_std: The deviation of the noise, a scalar that may be traced.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        The examples.
    """
    noise = noise_std * jax.random.normal(key, (count, config.dimension))
    return Examples(jnp.arange(count) % config.classes, noise)


def init_weights(key: jax.Array, config: ConfigDict) -> PyTree:
    """Draws the first layer.

    Args:
        key: A JAX PRNG key.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        {"neurons": float32[K, m, d]}, normal with the deviation `init_scale`.
    """
    shape = (config.classes, config.width, config.dimension)
    return {"neurons": config.init_scale * jax.random.normal(key, shape)}


def logits(params: PyTree, examples: Examples, config: ConfigDict) -> jax.Array:
    """Computes F(x).

    Args:
        params: As `init_weights` gives them.
        examples: n examples.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        float32[n, K].
    """
    weights = params["neurons"]
    # A signal patch is one of K: each is read once.
    of_signal = _activate(_aligned(weights, signals(config)), config)
    of_noise = _activate(_aligned(weights, examples.noise), config)
    return of_signal[examples.labels] + of_noise


def _aligned(weights: jax.Array, patches: Any) -> jax.Array:
    """<w_kr, patch> of all patches, classes and neurons."""
    return jnp.einsum("kmd,nd->nkm", weights, patches)


def _activate(aligned: jax.Array, config: ConfigDict) -> jax.Array:
    return jnp.mean(jnp.maximum(aligned, 0) ** config.power, axis=-1)


def loss_of(params: PyTree, examples: Examples, config: ConfigDict) -> jax.Array:
    """Computes the mean cross-entropy.

    Args:
        params: As `init_weights` gives them.
        examples: n examples.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        A float32 scalar, in nats.
    """
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits(params, examples, config), examples.labels
        )
    )


def measure(
    params: PyTree, train: Examples, test: Examples, config: ConfigDict
) -> Measures:
    """Measures a network.

    Args:
        params: As `init_weights` gives them.
        train: What it was trained on.
        test: What it was not.
        config: As in `experiments/configs/generalization.py`, checked.

    Returns:
        The measures.
    """
    weights = params["neurons"]

    def accuracy(examples: Examples) -> jax.Array:
        guesses = jnp.argmax(logits(params, examples, config), axis=-1)
        return jnp.mean(guesses == examples.labels)

    def strongest(patches: Any, labels: Any) -> jax.Array:
        """max_r <w_yr, patch>, a mean over the patches."""
        of_class = _aligned(weights, patches)[jnp.arange(len(labels)), labels]
        return jnp.mean(jnp.max(of_class, axis=-1))

    return Measures(
        train_loss=loss_of(params, train, config),
        train_accuracy=accuracy(train),
        test_loss=loss_of(params, test, config),
        test_accuracy=accuracy(test),
        signal=strongest(signals(config), jnp.arange(config.classes)),
        noise=strongest(train.noise, train.labels),
        test_noise=strongest(test.noise, test.labels),
    )
