"""What is done with the networks of a problem, compiled once for all seeds."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.auto_s_study.problem import Examples
from experiments.comparison.replicas import mean_loss
from experiments.training import criterion
from sparsejax import scores
from sparsejax.initialization.averaging import mean_gradients

PyTree = Any


class Case(NamedTuple):
    """A network before training, with its data; or those of all seeds, stacked.

    Attributes:
        params: First weights.
        order_key: The key of the order of examples.
        random_key: The key of random masks and scores.
        train: What to train on.
        test: What to test on.
        prune_set: One batch to take gradients of.
    """

    params: PyTree
    order_key: jax.Array
    random_key: jax.Array
    train: Examples
    test: Examples
    prune_set: Examples


class Programs(NamedTuple):
    """Functions of the cases of all seeds.

    Attributes:
        label: cases -> labels; see `sparsejax.auto_s_labels`.
        featurise: cases -> features; see `sparsejax.auto_s_features`.
        score: (cases, variables of the scoring networks) -> scores by name.
        keep_best: (scores, dense masks, how many) -> masks of the highest scores, as
            `sparsejax.auto_s`, `snip` and `magnitude_pruning` find them.
        draw: (cases, counts) -> random masks.
        accuracy: (cases, masks) -> test accuracy after training, float32[seeds].
    """

    label: Callable[..., PyTree]
    featurise: Callable[..., PyTree]
    score: Callable[..., dict[str, PyTree]]
    keep_best: Callable[..., PyTree]
    draw: Callable[..., PyTree]
    accuracy: Callable[..., jax.Array]


def make_programs(model: nn.Module, scorer: nn.Module, config: ConfigDict) -> Programs:
    """Makes the functions of a problem's networks.

    Args:
        model: Maps inputs to logits.
        scorer: The scoring network.
        config: As in `experiments/configs/auto_s.py`.

    Returns:
        The functions, compiled at their first call.
    """
    of_batch = mean_loss(model)

    def loss_fn(params: PyTree, batch: Examples) -> jax.Array:
        return of_batch(params, *batch)

    def train(case: Case, params: PyTree, masks: PyTree) -> PyTree:
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        tx = sj.static_transform(optax.adam(rate), masks=masks)

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
            params, state = carry
            batch = jax.tree.map(lambda leaf: leaf[chosen], case.train)
            grads = jax.grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        order = draw_order(case.order_key, len(case.train.labels), config)
        return jax.lax.scan(step, sj.init_sparse(tx, params), order)[0][0]

    def label(case: Case) -> PyTree:
        size = sj.count_prunable(sj.dense_masks(case.params))
        counts = sj.lottery_counts(size, [config.label_sparsity], config.fraction)
        rounds = criterion.iterative_masks(partial(train, case), case.params, counts)
        return sj.auto_s_labels(rounds)

    def gradients(case: Case) -> tuple[PyTree, PyTree]:
        masks = sj.dense_masks(case.params)
        return mean_gradients(loss_fn, case.params, [case.prune_set], masks), masks

    def featurise(case: Case) -> PyTree:
        return sj.auto_s_features(case.params, *gradients(case))

    def score(case: Case, variables: PyTree) -> dict[str, PyTree]:
        grads, masks = gradients(case)
        learnt: Any = partial(scorer.apply, variables)
        return {
            "auto_s": sj.auto_s_scores(learnt, case.params, grads, masks),
            "magnitude": scores.magnitude_scores(case.params, masks),
            "snip": scores.saliency_scores(case.params, grads, masks),
            "random": scores.random_scores(case.random_key, masks),
        }

    def keep_best(scores: PyTree, masks: PyTree, keep: int) -> PyTree:
        return sj.prune_by_score(scores, masks, keep=keep)

    def draw(case: Case, counts: PyTree) -> PyTree:
        return sj.random_masks(case.random_key, case.params, counts=counts)

    def accuracy(case: Case, masks: PyTree) -> jax.Array:
        trained = train(case, case.params, masks)
        logits: Any = model.apply(trained, case.test.inputs)
        return jnp.mean(jnp.argmax(logits, -1) == case.test.labels)

    def over_seeds(f: Callable[..., Any], *in_axes: int | None) -> Callable[..., Any]:
        return jax.jit(jax.vmap(f, in_axes=in_axes))

    return Programs(
        label=over_seeds(label, 0),
        featurise=over_seeds(featurise, 0),
        score=over_seeds(score, 0, 0),
        keep_best=over_seeds(keep_best, 0, 0, None),
        draw=over_seeds(draw, 0, None),
        accuracy=over_seeds(accuracy, 0, 0),
    )


def draw_order(key: jax.Array, examples: int, config: ConfigDict) -> jax.Array:
    """Shuffles the examples anew in each epoch.

    Args:
        key: A JAX PRNG key.
        examples: Number of examples.
        config: `steps` and `batch_size`, which is at most `examples`; those that fill
            no batch, others each time, are left out.

    Returns:
        Indices of the examples, int32[steps, batch_size].
    """
    batches = examples // config.batch_size
    epochs = -(-config.steps // batches)
    keys = jax.random.split(key, epochs)
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, examples))(keys)
    used = shuffled[:, : batches * config.batch_size]
    return used.reshape(-1, config.batch_size)[: config.steps]
