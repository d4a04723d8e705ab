"""Many small runs at once: seeds and sparsities side by side on one `jax.vmap` axis.

Runs of one method differ in numbers alone (seed, masks, final sparsity), so that one
compiled epoch trains them all.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsejax as sj
from experiments.training.state import mapped_fields

PyTree = Any


class Replica(NamedTuple):
    """What is a run's own.

    Attributes:
        seed: int32 scalar; seeds the first weights, the first masks, the order of the
            examples and random growth.
        sparsity: float32 scalar, the sparsity to end at.
        masks: The masks to start from; None where the method makes them.
    """

    seed: jax.Array
    sparsity: jax.Array
    masks: PyTree


class State(NamedTuple):
    """What training changes.

    Attributes:
        params: The weights.
        opt_state: The state of an optimizer wrapped with `sparsejax.sparsify`.
    """

    params: PyTree
    opt_state: PyTree


_STATE_AXES = State(params=0, opt_state=mapped_fields(sj.SparsifyState))

MakeTransform = Callable[[Replica], optax.GradientTransformationExtraArgs]
Start = Callable[[Replica, PyTree], State]
TrainEpoch = Callable[
    [Replica, State, np.ndarray, np.ndarray, np.ndarray], tuple[State, PyTree]
]


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Puts trees side by side.

    Args:
        trees: Trees of one structure.

    Returns:
        One tree, with a first axis over them.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _draw_masks(seed: int, params: PyTree, counts: PyTree) -> PyTree:
    return sj.random_masks(jax.random.key(seed), params, counts=counts)


@partial(jax.jit, static_argnums=0)
def first_params(model: nn.Module, seed: int, images: np.ndarray) -> PyTree:
    """Initialises a model.

    Args:
        model: The model.
        seed: The seed of the weights.
        images: Images to initialise with; only their shape matters.

    Returns:
        The parameters.
    """
    return model.init(jax.random.key(seed), images[:1])


def make_replica(
    seed: int,
    sparsity: float,
    first_sparsity: float | None,
    params: PyTree,
    distribution: str,
) -> Replica:
    """Makes a replica, with random masks of exact counts where it needs any.

    Args:
        seed: Its seed.
        sparsity: The sparsity to end at.
        first_sparsity: The sparsity of the masks to start from; None where the method
            makes them.
        params: Its parameters; only their shapes matter.
        distribution: How sparsity is shared out over layers; see
            `sparsejax.layer_counts`.

    Returns:
        The replica.
    """
    masks = None
    if first_sparsity is not None:
        counts = sj.active_counts(params, first_sparsity, distribution)
        masks = _draw_masks(seed, params, counts)
    return Replica(jnp.int32(seed), jnp.float32(sparsity), masks)


def compile_start(make_transform: MakeTransform) -> Start:
    """Makes the function that masks weights and initialises optimizers.

    Args:
        make_transform: A function replica -> wrapped optimizer.

    Returns:
        A function (replicas, weights) -> the state to train from, all stacked on the
        first axis, compiled at its first call.
    """

    def init(replica: Replica, params: PyTree) -> State:
        return State(*sj.init_sparse(make_transform(replica), params))

    return jax.jit(jax.vmap(init, out_axes=_STATE_AXES))


def batch_order(
    seeds: Sequence[int], epoch: int, examples: int, batch_size: int
) -> np.ndarray:
    """Shuffles the examples of an epoch, differently for each seed.

    Args:
        seeds: The seeds of the replicas.
        epoch: The epoch, at least 0.
        examples: Number of examples.
        batch_size: Examples a step; the rest that fills no batch is left out.

    Returns:
        Indices of the examples, int32[replicas, steps, batch_size].
    """
    steps = examples // batch_size
    shuffled = [
        np.random.default_rng((seed, epoch)).permutation(examples) for seed in seeds
    ]
    used = np.stack(shuffled)[:, : steps * batch_size].astype(np.int32)
    return used.reshape(len(seeds), steps, batch_size)


def mean_loss(model: nn.Module) -> Callable[..., jax.Array]:
    """Makes the loss of a model.

    Args:
        model: Maps images to logits.

    Returns:
        A function (params, images, labels, temperature) -> the mean cross-entropy.
    """

    def loss(
        params: PyTree, images: Any, labels: Any, temperature: float = 1.0
    ) -> jax.Array:
        logits: Any = model.apply(params, images)
        each = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, labels
        )
        return jnp.mean(each)

    return loss


def compile_epoch(model: nn.Module, make_transform: MakeTransform) -> TrainEpoch:
    """Makes the function that trains many replicas for an epoch.

    Args:
        model: Maps images to logits.
        make_transform: A function replica -> wrapped optimizer.

    Returns:
        A function (replicas, state, order, images, labels) -> (state, counts), compiled
        at its first call; it reuses the memory of the state it is given. The counts are
        the active weights of each layer after each step, int32[replicas, steps].
    """
    loss = mean_loss(model)

    def train_epoch(
        replica: Replica,
        state: State,
        order: jax.Array,
        images: jax.Array,
        labels: jax.Array,
    ) -> tuple[State, PyTree]:
        tx = make_transform(replica)

        def step(state: State, batch: jax.Array) -> tuple[State, PyTree]:
            grads = jax.grad(loss)(state.params, images[batch], labels[batch])
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            state = State(optax.apply_updates(state.params, updates), opt_state)
            return state, sj.count_active(sj.get_masks(opt_state), "layer")

        return jax.lax.scan(step, state, order)

    in_axes = (0, _STATE_AXES, 0, None, None)
    return jax.jit(
        jax.vmap(train_epoch, in_axes=in_axes, out_axes=(_STATE_AXES, 0)),
        donate_argnums=1,
    )


@partial(jax.jit, static_argnums=0)
def accuracy(
    model: nn.Module, params: PyTree, images: np.ndarray, labels: np.ndarray
) -> jax.Array:
    """Measures the share of images that each replica gets right.

    Args:
        model: Maps images to logits.
        params: Weights of the replicas, stacked.
        images: Images.
        labels: What they show.

    Returns:
        float32[replicas].
    """

    def of_one(params: PyTree) -> jax.Array:
        logits: Any = model.apply(params, images)
        return jnp.mean(jnp.argmax(logits, -1) == labels)

    return jax.vmap(of_one)(params)


def nonzero_weights(params: PyTree, masks: PyTree) -> PyTree:
    """Marks the prunable weights that are not exactly 0.

    Args:
        params: Weights.
        masks: Masks that fit them; they only say which leaves are prunable.

    Returns:
        A mask tree.
    """

    def mark(leaf: jax.Array, mask: Any) -> Any:
        return mask if isinstance(mask, optax.MaskedNode) else leaf != 0

    return jax.tree.map(mark, params, masks)


def by_path(tree: PyTree) -> dict[str, Any]:
    """Lists the leaves of a tree.

    Args:
        tree: Any tree.

    Returns:
        The leaves by their path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def layer_sizes(masks: PyTree) -> dict[str, int]:
    """Counts the prunable weights of each layer of one replica.

    Args:
        masks: Masks of the replicas, stacked.

    Returns:
        The counts by the path of the layer.
    """
    return {path: mask[0].size for path, mask in by_path(masks).items()}


@jax.jit
def _layer_counts(masks: PyTree) -> PyTree:
    return jax.vmap(lambda masks: sj.count_active(masks, "layer"))(masks)


def active_by_layer(masks: PyTree) -> dict[str, np.ndarray]:
    """Counts the active weights of each layer of each replica.

    Args:
        masks: Masks of the replicas, stacked.

    Returns:
        int32[replicas] by the path of the layer.
    """
    counts = by_path(_layer_counts(masks))
    return {path: np.asarray(each) for path, each in counts.items()}


def trained_densities(opt_state: PyTree) -> dict[str, Fraction] | None:
    """Reads the densities of Top-KAST's B, the same for all replicas and steps.

    Args:
        opt_state: The optimizer state of the replicas, stacked.

    Returns:
        The densities by path; None for other methods, which train what they run on.
    """
    is_top_kast = lambda node: isinstance(node, sj.TopKastState)
    if not any(map(is_top_kast, jax.tree.leaves(opt_state, is_leaf=is_top_kast))):
        return None
    _, backward = sj.top_kast_masks(opt_state)
    return sj.layer_densities(jax.tree.map(lambda mask: np.asarray(mask[0]), backward))


class Best:
    """Keeps each replica's validation accuracies and the test accuracy of the best.

    Attributes:
        history: float32[replicas] for each epoch.
        epoch: int[replicas], the first epoch of highest validation accuracy among those
            that count, -1 for none.
        test: float[replicas], the test accuracy after it; NaN for none.
    """

    def __init__(self, replicas: int) -> None:
        """Starts with nothing seen.

        Args:
            replicas: Their number.
        """
        self.history: list[np.ndarray] = []
        self.epoch = np.full(replicas, -1)
        self.test = np.full(replicas, np.nan)
        self._highest = np.full(replicas, -1.0)
        self._is_new = np.zeros(replicas, bool)

    def observe(self, validation: np.ndarray, counts: np.ndarray) -> bool:
        """Takes the accuracies after an epoch.

        Args:
            validation: float32[replicas].
            counts: bool[replicas], whether the epoch counts: a network on its way to
                its sparsity, or in a dense phase, is not the one that is asked for.

        Returns:
            Whether `note` is to be called, as some replica was never better.
        """
        self._is_new = counts & (validation > self._highest)
        self._highest[self._is_new] = validation[self._is_new]
        self.epoch[self._is_new] = len(self.history)
        self.history.append(validation)
        return bool(self._is_new.any())

    def note(self, test: np.ndarray) -> None:
        """Takes the test accuracies of the same epoch.

        Args:
            test: float32[replicas].
        """
        self.test[self._is_new] = test[self._is_new]
