"""AutoS: labels, features, and a criterion learned on an MLP that prunes a CNN."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import spearmanr

import sparsejax as sj
from experiments import criterion
from experiments.criterion import ScoreMLP
from experiments.digits_data import load_split
from experiments.models.digits_cnn import DigitsCNN
from sparsejax.initialization.averaging import mean_gradients

pytestmark = pytest.mark.usefixtures("quick_compilation")
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(5, 4)), "b": np.ones(4), "c": RNG.normal(size=(4, 3))}
PARAMS = jax.tree.map(np.float32, PARAMS)
GRADS = jax.tree.map(lambda w: np.float32(1e-25 * RNG.normal(size=w.shape)), PARAMS)
DENSE = sj.dense_masks(PARAMS)
MLP_SIZES = (64, 32, 10)
NETWORK = ScoreMLP(width=32)


def test_labels_are_the_rounds_survived():
    counts = sj.lottery_counts(32, [0.9], 0.5)
    rounds = criterion.iterative_masks(lambda p, m: p, PARAMS, counts)
    assert [int(sj.count_active(masks)) for masks in rounds] == counts == [15, 7, 3]
    labels = sj.auto_s_labels(rounds)
    values = np.concatenate([labels[n].ravel() for n in "ac"])
    size = np.concatenate([abs(PARAMS[n]).ravel() for n in "ac"])
    survived = np.digitize(size, np.sort(size)[[-15, -7, -3]])  # magnitude by hand
    np.testing.assert_allclose(values, survived / 3, rtol=1e-6)
    assert isinstance(labels["b"], optax.MaskedNode)
    with pytest.raises(ValueError, match="survive 2 of 2 rounds"):
        sj.auto_s_labels([DENSE, DENSE])
    with pytest.raises(ValueError, match="one round at least"):
        sj.auto_s_labels([])


def test_features_have_the_scale_of_no_network_and_keep_that_of_layers():
    features = sj.auto_s_features(PARAMS, GRADS, DENSE)
    for i, tree in enumerate((PARAMS, GRADS)):
        flat = np.concatenate([np.float64(tree[n]).ravel() for n in "ac"])
        rms = np.sqrt(np.mean(flat**2))
        got = np.concatenate([features[n][..., i].ravel() for n in "ac"])
        np.testing.assert_allclose(got, flat / rms, rtol=1e-5)
    larger = jax.tree.map(lambda leaf: 100 * leaf, (PARAMS, GRADS))
    for n, leaf in sj.auto_s_features(*larger, DENSE).items():
        if n != "b":
            np.testing.assert_allclose(leaf, features[n], rtol=1e-5)


def test_scores_do_not_depend_on_chunks_and_need_one_number():
    def score_fn(features):
        return jnp.where(features[0] > 1, jnp.inf, features[0] - 2 * features[1])

    features = sj.auto_s_features(PARAMS, GRADS, DENSE)
    for chunk_size in (1, 7, 8192):
        scores = sj.auto_s_scores(score_fn, PARAMS, GRADS, DENSE, chunk_size)
        for n in "ac":
            w, g = np.moveaxis(np.asarray(features[n]), -1, 0)
            np.testing.assert_allclose(
                scores[n], np.where(w > 1, np.nan, w - 2 * g), rtol=1e-5, atol=1e-6
            )
    with pytest.raises(ValueError, match="score_fn must give one number"):
        sj.auto_s_scores(lambda features: features, PARAMS, GRADS, DENSE)
    with pytest.raises(ValueError, match="chunk_size must be an integer"):
        sj.auto_s_scores(score_fn, PARAMS, GRADS, DENSE, 0)


def mlp_logits(params, images):
    x = images.reshape(len(images), -1)
    return jax.nn.relu(x @ params["hidden"]) @ params["output"]


def cnn_logits(params, images):
    return DigitsCNN().apply(params, images)


def make_loss(logits):
    def loss(params, batch):
        images, labels = batch
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(
                logits(params, images), labels
            )
        )

    return loss


def prune_set(examples):
    """Ten images a class, as one batch."""
    chosen = [np.flatnonzero(examples.labels == c)[:10] for c in range(10)]
    return [jax.tree.map(lambda leaf: leaf[np.concatenate(chosen)], tuple(examples))]


@pytest.fixture(scope="module")
def digits():
    return load_split(0.15, 0.15, seed=0)


@pytest.fixture(scope="module")
def learned(digits, tmp_path_factory):
    """A criterion learned on an MLP: its path, and the weights that it has not seen."""
    loss = make_loss(mlp_logits)
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        name: jax.nn.initializers.he_normal()(key, shape)
        for name, key, shape in zip(
            ("hidden", "output"), keys, itertools.pairwise(MLP_SIZES)
        )
    }
    optimizer = optax.adam(0.005)
    data = tuple(digits.train)

    @jax.jit
    def train(params, masks):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, data), state)
            params = sj.apply_masks(optax.apply_updates(params, updates), masks)
            return (params, state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[0][0]

    size = sj.count_prunable(sj.dense_masks(params))
    rounds = criterion.iterative_masks(train, params, sj.lottery_counts(size, [0.98]))
    dense = sj.dense_masks(params)
    grads = mean_gradients(loss, params, prune_set(digits.train), dense)
    features = sj.auto_s_features(params, grads, dense)
    labels = sj.auto_s_labels(rounds)
    fit, test = criterion.split_weights(keys[2], features, labels, 0.25)
    assert len(fit.labels) + len(test.labels) == size
    variables = criterion.fit_score(NETWORK, keys[3], fit, epochs=60)
    path = tmp_path_factory.mktemp("auto_s") / "score.msgpack"
    criterion.save_score(path, variables)
    return path, variables, test


def test_the_learned_score_ranks_weights_that_it_has_not_seen(learned):
    _, variables, test = learned
    scores = NETWORK.apply(variables, test.features)
    by_chance = 1 / np.sqrt(len(test.labels) - 1)  # the deviation of a correlation
    assert spearmanr(scores, test.labels).statistic > 6 * by_chance
    # Nor is it the order alone: it errs less than their mean would.
    assert np.mean((scores - test.labels) ** 2) < 0.95 * np.var(test.labels)


def test_a_saved_score_prunes_another_architecture(digits, learned):
    path, variables, _ = learned
    restored = criterion.load_score(path, NETWORK)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, restored))
    with pytest.raises(ValueError, match="must hold the variables of network"):
        criterion.load_score(path, ScoreMLP(width=8))
    cnn = jax.jit(DigitsCNN().init)(jax.random.key(1), digits.train.images[:1])
    score_fn = functools.partial(NETWORK.apply, restored)
    masks = sj.auto_s(
        make_loss(cnn_logits),
        cnn,
        prune_set(digits.train),
        None,
        0.9,
        score_fn=score_fn,
    )
    size = sj.count_prunable(sj.dense_masks(cnn))
    assert size == 27_408 and sj.count_active(masks) == sj.keep_count(0.9, size)
    # Beside magnitude, from which it learned, the gradient has a say.
    magnitude = sj.magnitude_pruning(None, cnn, None, None, 0.9)
    assert 0.05 < sj.jaccard(masks, magnitude) < 0.999
