"""Image networks of several seeds on one axis, dense or under masks that stay.

One compiled program trains them all, dense ones under masks that are True everywhere:
states, seeds and learning rates are its arguments. Whatever was done to a network, an
epoch has the order of examples and the augmentation of its seed.
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments import fit
from experiments.augment import PadMode, check_pad, normalize
from experiments.data import (
    DeviceData,
    EpochPlan,
    augmented,
    device_data,
    epoch_plan,
    load_dataset,
    steps_per_epoch,
)
from experiments.models import MODELS, create_model
from experiments.models.digits_cnn import DigitsCNN
from experiments.models.mlp import DigitsMLP
from experiments.optimizer import SCHEDULES, learning_rate, make_optimizer
from experiments.step import TrainState, create_state, make_eval_step, make_train_step
from experiments.study import (
    Condition,
    count_conditions,
    number_conditions,
    seeds_condition,
)
from sparsejax.slots import reset_slots

PyTree = Any

# What may change between the commands of a study: how it is run, not what it computes.
OPERATIONAL = ("data_dir", "eval_batch_size", "seeds_at_once")
_DIGITS_MODELS = {"digits_cnn": DigitsCNN, "digits_mlp": DigitsMLP}


def training_conditions(config: ConfigDict) -> Iterator[Condition]:
    """Yields what must hold of the fields that say how networks are trained."""
    for field, names in (
        ("model", (*_DIGITS_MODELS, *MODELS)),
        ("augment", ("none", "cifar")),
        ("schedule", SCHEDULES),
        ("dtype", ("float32", "bfloat16")),
    ):
        yield field, config[field] in names, f"one of {', '.join(names)}"
    yield from count_conditions(
        config, "epochs", "batch_size", "eval_batch_size", "seeds_at_once"
    )
    yield from number_conditions(
        config,
        learning_rate="(0, inf)",
        weight_decay="[0, inf)",
        warmup_epochs="[0, inf)",
        momentum="[0, 1)",
        label_smoothing="[0, 1)",
    )
    yield seeds_condition(config)


# Moves nothing: after a step, the optimizer's state is the gradient.
_KEEP_GRADIENT = optax.GradientTransformationExtraArgs(
    init=lambda params: optax.EmptyState(),
    update=lambda grads, state, params=None, **extra: (
        jax.tree.map(jnp.zeros_like, grads),
        grads,
    ),
)


class Runs:
    """The networks of a configuration's seeds; states have them on their first axis.

    Attributes:
        seeds: int32[seeds].
        epoch_steps: Steps of an epoch.
        learning_rates: float32[steps of the run], as scheduled.
    """

    def __init__(self, config: ConfigDict) -> None:
        """Loads the data and makes the network; programs compile when first called."""
        dataset = load_dataset(
            config.dataset,
            config.data_dir,
            config.validation_examples,
            config.split_seed,
        )
        is_shifted = config.augment == "cifar"
        self._mode: PadMode = config.pad_mode if is_shifted else "none"
        self._pad = config.pad if is_shifted else 0
        check_pad(dataset.image_shape[:2], self._pad, self._mode)
        self._config = config
        self._image_shape = dataset.image_shape
        self._model = _make_model(config, dataset.num_classes)
        self._train_set, self._test_set = (
            device_data(split, dataset.mean, dataset.std)
            for split in (dataset.train, dataset.test)
        )
        self.seeds = np.asarray(config.seeds, np.int32)
        self.epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
        steps = self.epoch_steps * config.epochs
        schedule = learning_rate(config, steps, self.epoch_steps)
        # To six digits: 0.1 * 0.1 is then the fixed 0.01, and is continued with once.
        rates = jax.vmap(schedule)(jnp.arange(steps)).tolist()
        self.learning_rates = np.array([float(f"{r:.6g}") for r in rates], np.float32)

        self._create = self._over_seeds(self._create_one)
        self._train = self._over_seeds(self._train_one)
        self._gradients = self._over_seeds(self._gradient_of_one)
        self._hits = self._over_seeds(self._hits_of_one)
        self._with_masks = self._over_seeds(partial(under_masks, config))

    def _over_seeds(self, function: Callable[..., Any]) -> Any:
        """Compiles (own of each seed, shared by all) for the seeds of an axis."""
        at_once = self._config.seeds_at_once

        def mapped(own: tuple[Any, ...], *shared: Any) -> Any:
            one = lambda own: function(*own, *shared)
            if at_once >= len(self.seeds):
                return jax.vmap(one)(own)
            # One at a time has no mapped axis at all.
            return jax.lax.map(one, own, batch_size=at_once if at_once > 1 else None)

        return jax.jit(mapped)

    def create(self, sparsity: float = 0.0, *, new_weights: int = 0) -> TrainState:
        """Draws first weights, and ERK masks of a sparsity if it is not 0.

        `new_weights` is added to the seeds of the weights.
        """
        states = self._create((self.seeds + new_weights,))
        if not sparsity:
            return states
        shapes = jax.eval_shape(
            lambda p: jax.tree.map(lambda x: x[0], p), states.params
        )
        counts = sj.active_counts(shapes, sparsity, "erk")
        draw = jax.vmap(fit.draw_masks, in_axes=(0, 0, None))
        masks = draw(self.seeds, states.params, counts)
        return self.with_masks(states, masks, masks)

    @functools.cached_property
    def like(self) -> TrainState:
        """Shapes of the states."""
        return jax.eval_shape(self.create)

    def rates(self, epoch: int) -> np.ndarray:
        """Returns the scheduled learning rates of an epoch, after the end the last."""
        steps = epoch * self.epoch_steps + np.arange(self.epoch_steps)
        return self.learning_rates[np.minimum(steps, len(self.learning_rates) - 1)]

    def train(
        self, states: TrainState, epoch: int, rates: np.ndarray | None = None
    ) -> TrainState:
        """Trains for an epoch, at the scheduled learning rates if no others are given.

        The epoch decides the order of examples.
        """
        rates = self.rates(epoch) if rates is None else rates
        return self._train((states, self.seeds), epoch, rates, self._train_set)

    def first_gradients(self, states: TrainState, epoch: int) -> PyTree:
        """Computes dense gradients over the batch that an epoch begins with."""
        return self._gradients((states, self.seeds), epoch, self._train_set)

    def accuracy(self, states: TrainState) -> np.ndarray:
        """Computes the share of test images that each gets right: float64[seeds]."""
        hits = np.asarray(self._hits((states,), self._test_set), np.float64)
        return hits / len(self._test_set.labels)

    def with_masks(self, states: TrainState, kept: PyTree, masks: PyTree) -> TrainState:
        """Returns states under new masks, which stay.

        Weights that are not in `kept` become 0 and lose their momentum; masks may have
        more, which start from there.
        """
        return self._with_masks((states, kept, masks))

    def _create_one(self, seed: Any) -> TrainState:
        inner = make_optimizer(self._config, lambda count: 0.0, "dense")
        tx = sj.static_transform(inner, sparsity=0.0, distribution="uniform")
        return create_state(self._model, lambda masks: tx, self._image_shape, seed)

    def _step(self, tx: optax.GradientTransformationExtraArgs) -> Any:
        return make_train_step(
            self._model,
            tx,
            label_smoothing=self._config.label_smoothing,
            accumulation=1,
            axis_name=None,
            may_update=False,
        )

    def _batches(self, seed: jax.Array, epoch: jax.Array, data: DeviceData) -> Any:
        """Plans an epoch; fields have the axes (steps, batch size, ...)."""
        steps, size = self.epoch_steps, self._config.batch_size
        plan = epoch_plan(seed, epoch, len(data.labels), self._pad)
        batches = lambda f: f[: steps * size].reshape(steps, size, *f.shape[1:])
        return jax.tree.map(batches, plan)

    def _batch(self, data: DeviceData, rows: EpochPlan) -> Any:
        return augmented(data, rows.order, rows.crop, rows.flip, self._pad, self._mode)

    def _train_one(
        self,
        state: TrainState,
        seed: jax.Array,
        epoch: jax.Array,
        rates: jax.Array,
        data: DeviceData,
    ) -> TrainState:
        masks = sj.get_masks(state.opt_state)

        def step(state: TrainState, item: Any) -> tuple[TrainState, None]:
            rows, rate = item
            inner = make_optimizer(self._config, lambda count: rate, "dense")
            train_step = self._step(sj.static_transform(inner, masks=masks))
            return train_step(state, self._batch(data, rows))[0], None

        items = self._batches(seed, epoch, data), rates
        return jax.lax.scan(step, state, items)[0]

    def _gradient_of_one(
        self, state: TrainState, seed: jax.Array, epoch: jax.Array, data: DeviceData
    ) -> PyTree:
        rows = jax.tree.map(lambda f: f[0], self._batches(seed, epoch, data))
        start = state._replace(opt_state=())
        after, _ = self._step(_KEEP_GRADIENT)(start, self._batch(data, rows))
        return after.opt_state

    def _hits_of_one(self, state: TrainState, data: DeviceData) -> jax.Array:
        evaluate = make_eval_step(self._model, axis_name=None)
        total = len(data.labels)
        size = min(self._config.eval_batch_size, total)
        places = jnp.arange(-(-total // size) * size, dtype=jnp.int32)

        def of_batch(places: jax.Array) -> jax.Array:
            rows = jnp.minimum(places, total - 1)
            batch = {
                "image": normalize(data.images[rows], data.mean, data.std),
                "label": data.labels[rows],
                "weight": (places < total).astype(jnp.float32),
            }
            return evaluate(state, batch)["accuracy"]

        return jnp.sum(jax.lax.map(of_batch, places.reshape(-1, size)))


def under_masks(
    config: ConfigDict, state: TrainState, kept: PyTree, masks: PyTree
) -> TrainState:
    """Does for one network what `Runs.with_masks` does for all."""
    params = sj.apply_masks(state.params, kept)
    inner = make_optimizer(config, lambda count: 0.0, "dense")
    start = sj.static_transform(inner, masks=masks).init(params)
    old = state.opt_state
    slots = reset_slots(inner, old.inner_state, params, kept, masks, True)
    opt_state = start._replace(step=old.step, inner_state=slots)
    return state._replace(params=params, opt_state=opt_state)


def _make_model(config: ConfigDict, classes: int) -> nn.Module:
    options = config.model_options.to_dict()
    if config.model in _DIGITS_MODELS:
        return _DIGITS_MODELS[config.model](classes, **options)
    dtype = jnp.dtype(config.dtype)
    return create_model(config.model, classes, dtype=dtype, **options)


def prunable_weights(states: TrainState) -> int:
    """Counts the prunable weights of one network; only shapes matter."""
    masks = jax.tree.leaves(sj.get_masks(states.opt_state))
    return sum(mask.size // len(mask) for mask in masks)


def count_weights(states: TrainState) -> dict[str, np.ndarray]:
    """Counts "active" weights and "empty_layers" of each network, int[seeds]."""
    layers = fit.layer_counts(sj.get_masks(states.opt_state))
    each = np.stack([np.asarray(count) for count in jax.tree.leaves(layers)])
    return {"active": each.sum(axis=0), "empty_layers": (each == 0).sum(axis=0)}
