"""SNIP, GraSP, FORCE and Iterative SNIP against NumPy oracles of the official rules."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsejax as sj

pytestmark = pytest.mark.usefixtures("quick_compilation")
TEMPERATURE = 200.0


def make(sizes, seed):
    rng = np.random.default_rng(seed)
    pairs = list(itertools.pairwise(sizes))
    return [rng.normal(size=p).astype("f4") / np.float32(p[0] ** 0.5) for p in pairs]


def make_batches(number, features, classes, seed=0, dead_inputs=0):
    """Batches of 12, with each class equally often and some inputs always 0."""
    rng = np.random.default_rng(seed)
    alive = np.arange(features) >= dead_inputs
    images = rng.normal(size=(number, 12, features)).astype("f4") * alive
    return [(x, rng.permutation(np.arange(12) % classes)) for x in images]


def loss(params, batch, temperature=1.0):
    x, labels = batch
    for kernel in params[:-1]:
        x = jnp.tanh(x @ kernel)
    logits = x @ params[-1] / temperature
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def numpy_gradient(kernels, batches, temperature=1.0):
    """The mean gradient over batches in float64, by hand."""
    total = [0.0] * len(kernels)
    for x, labels in batches:
        signals = [np.float64(x)]
        for kernel in kernels[:-1]:
            signals.append(np.tanh(signals[-1] @ kernel))
        e = np.exp(signals[-1] @ kernels[-1] / temperature)
        e = (e / e.sum(1, keepdims=True) - np.eye(e.shape[1])[labels]) / len(x)
        e /= temperature * len(batches)
        for layer in reversed(range(len(kernels))):
            total[layer] = total[layer] + signals[layer].T @ e
            e = (e @ kernels[layer].T) * (1 - signals[layer] ** 2)
    return total


def kept_at(scores, count):
    """The authors' choice: every score that reaches the count-th largest."""
    threshold = np.sort(np.concatenate([s.ravel() for s in scores]))[-count]
    return [s >= threshold for s in scores], threshold


def assert_same(masks, expected):
    for mask, other in zip(masks, expected):
        np.testing.assert_array_equal(np.asarray(mask), other)


@pytest.mark.parametrize("dead_inputs", [0, 2])
def test_snip_is_the_official_rule(dead_inputs):
    params = make((6, 9, 4), seed=0)
    batches = make_batches(2, 6, 4, dead_inputs=dead_inputs)
    wide = [np.float64(w) for w in params]
    scores = [abs(w * g) for w, g in zip(wide, numpy_gradient(wide, batches))]
    whole = sum(s.sum() for s in scores)
    expected, threshold = kept_at([s / whole for s in scores], 27)
    assert threshold > 0
    assert_same(sj.snip(loss, params, batches, None, 0.7), expected)


@pytest.mark.parametrize("dead_inputs", [0, 2])
def test_grasp_is_the_official_rule(dead_inputs):
    """Two halves of a balanced batch, logits over 200, the largest -w Hg removed."""
    params = make((6, 9, 4), seed=1)
    halves = make_batches(2, 6, 4, dead_inputs=dead_inputs)
    wide, eps = [np.float64(w) for w in params], 1e-3

    def summed(kernels):
        return [2 * g for g in numpy_gradient(kernels, halves, TEMPERATURE)]

    g = summed(wide)
    unit = max(abs(each).max() for each in g)
    ahead = summed([w + eps * each / unit for w, each in zip(wide, g)])
    behind = summed([w - eps * each / unit for w, each in zip(wide, g)])
    Hg = [(a - b) * unit / (2 * eps) for a, b in zip(ahead, behind)]
    scores = [-w * product for w, product in zip(wide, Hg)]
    whole = abs(sum(s.sum() for s in scores)) + 1e-10
    count = 45 if dead_inputs == 0 else 27  # none of equal scores 0 is the last
    kept, threshold = kept_at([-s / whole for s in scores], count)
    assert threshold != 0 and sum(mask.sum() for mask in kept) == count
    sparsity = 1 - count / 90
    assert_same(sj.grasp(loss, params, halves, None, sparsity), kept)
    # Its temperature is no matter of scale.
    other = sj.grasp(loss, params, halves, None, sparsity, temperature=1.0)
    assert sj.jaccard(other, sj.grasp(loss, params, halves, None, sparsity)) < 0.8


def test_a_loss_without_a_temperature_is_refused():
    params, batches = make((6, 9, 4), seed=1), make_batches(1, 6, 4)
    with pytest.raises(
        ValueError, match=r"loss_fn must take the temperature .*got one"
    ):
        sj.grasp(lambda params, batch: loss(params, batch), params, batches, None, 0.5)
    for bad in (0, -1.0, np.inf, "200"):
        with pytest.raises(ValueError, match="temperature must be"):
            sj.grasp(loss, params, batches, None, 0.5, temperature=bad)


class Official:
    """The loop of FORCE's code; it may end with too few positive scores, as there."""

    def __init__(self, params, batches_of, counts, may_return):
        self.dense = [np.float64(w) for w in params]
        self.network, self.mask = self.dense, None
        self.unranked = []  # rounds whose scores keep everything
        for number, count in enumerate(counts):
            self.round(number, batches_of(number), count, may_return)

    def round(self, number, batches, count, may_return):
        weights = self.dense if may_return else self.network
        grads = numpy_gradient(self.network, batches)
        scores = [abs(w * g) for w, g in zip(weights, grads)]
        if self.mask is not None and not may_return:
            least = min(s.min() for s in scores)
            scores = [np.where(m, s, least) for m, s in zip(self.mask, scores)]
        self.mask, threshold = kept_at(scores, count)
        if threshold == 0:
            self.unranked.append(number)
        before = self.dense if may_return else self.network
        self.network = [w * m for w, m in zip(before, self.mask)]


def counts_of(size, sparsity, rounds, decay="exponential"):
    t = np.arange(1, rounds + 1) / rounds
    linear = 1 - sparsity * t
    path = (1 - sparsity) ** t if decay == "exponential" else linear
    return np.rint(size * path).astype(int)


# sizes, seed, dead inputs, sparsity, rounds, FORCE or Iterative SNIP, and the rounds
# that rank too few weights: none, the first, some in between, the last.
CASES = [
    ((6, 9, 4), 0, 0, 0.9, 6, True, []),
    ((6, 9, 4), 0, 0, 0.9, 6, False, []),
    ((6, 9, 4), 0, 3, 0.9, 12, True, [0]),
    ((6, 9, 4), 0, 3, 0.9, 12, False, [0]),
    ((4, 12, 12, 3), 4, 0, 0.97, 15, True, [13]),
    ((4, 12, 12, 3), 4, 0, 0.97, 15, False, [13]),
    ((4, 12, 12, 3), 3, 0, 0.97, 15, True, [11, 14]),
    ((4, 12, 12, 3), 3, 0, 0.97, 8, False, [7]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_force_and_iterative_snip_are_the_official_rule(case):
    """With a new batch in every round, and scores of 0 that rank nothing."""
    sizes, seed, dead_inputs, sparsity, rounds, may_return, unranked = case
    params = make(sizes, seed)
    pool = make_batches(40, sizes[0], sizes[-1], dead_inputs=dead_inputs)
    counts = counts_of(sum(w.size for w in params), sparsity, rounds)
    official = Official(params, lambda t: [pool[t]], counts, may_return)
    assert official.unranked == unranked
    expected = [w != 0 for w in official.network]
    if rounds - 1 in unranked:  # prunes nothing there; here, the scores of SNIP choose
        grads = numpy_gradient(official.dense, [pool[rounds - 1]])
        scores = [abs(w * g) for w, g in zip(official.dense, grads)]
        expected, threshold = kept_at(scores, counts[-1])
        assert threshold > 0
    options = {"rounds": rounds, "may_return": may_return}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sj.EmptyLayerWarning)
        masks = sj.force(
            loss, params, lambda t: iter([pool[t]]), None, sparsity, **options
        )
    assert_same(masks, expected)
    assert sj.count_active(masks) == counts[-1]


@pytest.mark.parametrize("may_return", [True, False])
def test_a_linear_decay_and_batches_that_are_held(may_return):
    params, batches = make((6, 9, 4), seed=2), make_batches(2, 6, 4)
    counts = counts_of(90, 0.8, 5, "linear")
    official = Official(params, lambda t: batches, counts, may_return)
    assert not official.unranked
    options = {"rounds": 5, "decay": "linear", "may_return": may_return}
    masks = sj.force(loss, params, iter(batches), None, 0.8, **options)
    assert_same(masks, official.mask)


def test_only_force_lets_weights_return():
    """The masks after t of T rounds: t rounds to the density that T rounds pass."""
    params, batches = make((6, 9, 4), seed=0), make_batches(1, 6, 4)
    for may_return in (True, False):
        history = [
            sj.force(
                loss,
                params,
                batches,
                None,
                1 - 0.1 ** (t / 6),
                rounds=t,
                may_return=may_return,
            )
            for t in range(1, 7)
        ]
        returned = sum(
            int(sj.count_active(sj.difference(after, before)))
            for before, after in itertools.pairwise(history)
        )
        assert (returned > 0) == may_return


@pytest.mark.parametrize("may_return", [True, False])
def test_scores_that_rank_too_few_weights_are_refused(may_return):
    """Half of the inputs are always 0: a quarter of the weights can have no score."""
    params = make((6, 9, 4), seed=0)
    batches = make_batches(2, 6, 4, dead_inputs=3)
    options = {"rounds": 3, "may_return": may_return}
    with pytest.raises(ValueError, match="keeps more weights than have a score"):
        sj.force(loss, params, batches, None, 0.1, **options)
    # In one layer too, where it is ranked by itself.
    fixed = {"prunable": [("0", 0.1)], **options}
    with pytest.raises(ValueError, match="keeps more weights than have a score"):
        sj.force(loss, params, batches, None, 0.2, **fixed)


def test_what_does_not_exist_is_refused():
    params, batches = make((6, 9, 4), seed=0), make_batches(1, 6, 4)
    with pytest.raises(ValueError, match="decay must be one of 'exponential', 'line"):
        sj.force(loss, params, batches, None, 0.5, decay="cubic")
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        sj.force(loss, params, batches, None, 0.5, rounds=0)


# Fixed sparsities that do not add up to the path of the whole on the way.
FIXED = {
    "all layers": ([("0", 0.8), ("1", 0.5)], 0.7, (11, 18)),
    "all layers, overall left out": ([("0", 0.8), ("1", 0.5)], None, (11, 18)),
    "one dense": ([("1", 0.0)], 0.6, (0, 36)),
    "one all but empty": ([("0", 0.96)], 0.6, (2, 34)),
}


def relu_outputs(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


@pytest.mark.parametrize("case", FIXED)
def test_methods_in_rounds_reach_fixed_sparsities_that_snip_reaches(case):
    prunable, sparsity, expected = FIXED[case]
    params, batches = make((6, 9, 4), seed=0), make_batches(1, 6, 4)
    one = [batches[0][0][:1]]
    calls = [
        (sj.snip, loss, batches, {}),
        (sj.force, loss, batches, {"rounds": 6}),
        (sj.force, loss, batches, {"rounds": 6, "may_return": False}),
        (sj.force, loss, batches, {"rounds": 6, "decay": "linear"}),
        (sj.synflow, relu_outputs, one, {"rounds": 6}),
        (sj.drive, loss, batches, {"rounds": 6}),
    ]
    for method, function, data, options in calls:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sj.EmptyLayerWarning)
            masks = method(
                function, params, data, None, sparsity, prunable=prunable, **options
            )
        assert tuple(int(mask.sum()) for mask in masks) == expected, method


def test_an_overall_sparsity_is_left_out_only_where_every_layer_has_its_own():
    params, batches = make((6, 9, 4), seed=0), make_batches(1, 6, 4)
    with pytest.raises(ValueError, match="got none for '1'"):
        sj.force(loss, params, batches, None, None, prunable=[("0", 0.5)])


def deep_loss(params, batch):
    """Twenty-four layers of ReLUs with a layer norm, and no way around any."""

    def layer(x, kernel):
        x = x @ kernel
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return jax.nn.relu(x), None

    x, _ = jax.lax.scan(layer, batch[0], params["blocks"])
    logits = x @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def test_layers_of_a_deep_perceptron_are_not_emptied_by_scores_of_0():
    """By position, FORCE would keep one of 24 layers."""
    rng = np.random.default_rng(0)
    params = {"blocks": rng.normal(size=(24, 32, 32)), "head": rng.normal(size=(32, 4))}
    params = jax.tree.map(lambda w: np.float32(w / 32**0.5), params)
    prunable = [("blocks", sj.LayerRule(stacked=True)), ("head", True)]
    masks = sj.force(
        deep_loss,
        params,
        make_batches(1, 32, 4),
        None,
        0.98,
        rounds=30,
        prunable=prunable,
    )
    assert np.count_nonzero(~masks["blocks"].any((1, 2))) <= 2
