"""What a run is made of: data, network, optimizer and compiled steps."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.input.datasets import Dataset, load_dataset
from experiments.models import create_model
from experiments.training import before_training
from experiments.training.feed import Feed, make_feed
from experiments.training.first_masks import first_masks
from experiments.training.optimizer import learning_rate, make_optimizer
from experiments.training.parallel import AXIS, Parallel, make_parallel
from experiments.training.plan import Plan, is_measured, plan_run
from experiments.training.sparse import sparse_optimizer
from experiments.training.state import TrainState, create_state
from experiments.training.steps import EvalStep, make_eval_step, make_train_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last.

    Attributes:
        config: The configuration.
        plan: Its lengths in steps.
        dataset: The data.
        parallel: How states and batches are placed.
        feed: Where training batches come from.
        first_state: () -> the state at step 0, pruned if the method does that before
            training.
        image_size: Side of the images that the model sees.
        steps: (state, batch) -> (state, metrics), by whether the topology may change;
            the same function for all seeds.
        train: The compiled step over a chunk, alike.
        is_update_step: A function of steps: where the topology changes.
        evaluate: The compiled evaluation of a chunk.
        schedule: step -> learning rate.
        layer_counts: Optimizer state -> active weights of each layer.
    """

    config: ConfigDict
    plan: Plan
    dataset: Dataset
    parallel: Parallel
    feed: Feed
    first_state: Callable[[], TrainState]
    image_size: int
    steps: Any  # by whether the topology may change
    train: Any  # alike
    is_update_step: Any
    evaluate: Any
    schedule: Any
    layer_counts: Any


def over_chunk(step: Any, fetch: Any) -> Any:
    """Makes a step take a chunk of batches; a chunk of one is not scanned.

    Args:
        step: A function (state, batch) -> (state, metrics).
        fetch: A function (data, item) -> the batch of a step.

    Returns:
        A function (state, data, items of some steps) -> (state, metrics of them).
    """

    def run(
        state: TrainState, data: PyTree, chunk: PyTree
    ) -> tuple[TrainState, PyTree]:
        def one(state: TrainState, item: PyTree) -> tuple[TrainState, PyTree]:
            return step(state, fetch(data, item))

        if len(jax.tree.leaves(chunk)[0]) > 1:
            return jax.lax.scan(one, state, chunk)
        state, metrics = one(state, jax.tree.map(lambda x: x[0], chunk))
        return state, jax.tree.map(lambda x: x[None], metrics)

    return run


def _of_chunk(eval_step: EvalStep, feed: Feed) -> Any:
    """Makes a function of a chunk of one batch of an evaluation step."""

    def run(state: TrainState, data: PyTree, chunk: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[0], chunk)
        return eval_step(state, batch | {"image": feed.normalise(batch["image"])})

    return run


def _with_topology(train_step: Any) -> Any:
    """Adds the topology's metrics to those of a step."""

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, PyTree]:
        state, metrics = train_step(state, batch)
        for name in sj.Metrics._fields:
            metrics[name] = optax.tree.get(state.opt_state, name)
        return state, metrics

    return step


def prepare_run(config: ConfigDict) -> Run:
    """Checks the configuration and the data; compiles nothing.

    Args:
        config: The experiment; see `experiments.configs.common.base_config`.

    Returns:
        The run.

    Raises:
        ValueError: If something does not fit, in one sentence.
        FileNotFoundError: If the data is not there.
    """
    dataset = load_dataset(
        config.dataset, config.data_dir, config.validation_examples, config.seed
    )
    plan = plan_run(config, dataset)
    per_device = AXIS if config.sync_batch_norm and config.parallel == "pmap" else None
    make_model = functools.partial(
        create_model,
        config.model,
        dataset.num_classes,
        dtype=jnp.dtype(config.dtype),
        **config.model_options,
    )
    model = make_model(axis_name=per_device)
    schedule = learning_rate(config, plan.total_steps, plan.epoch_steps)

    def optimizer(masks: PyTree) -> sj.SparseTransformation:
        return sparse_optimizer(
            before_training.trained_as(config.method),
            make_optimizer(config, schedule, config.method),
            config,
            plan.total_steps,
            sparsity=config.sparsity,
            seed=config.seed,
            masks=masks,
        )

    tx = optimizer(None)
    side = config.image_size or dataset.image_shape[0]
    shape = (side, side, dataset.image_shape[-1])

    def create(masks: PyTree) -> TrainState:
        return create_state(model, optimizer, shape, config.seed, masks)

    def first_state() -> TrainState:
        masks = None
        if config.method in before_training.LABELS:
            masks = first_masks(config, make_model(), dataset, shape)
        return parallel.put_state(create(masks))

    parallel = make_parallel(
        config.parallel, jax.eval_shape(lambda: create(None)), config.shard_state
    )
    feed = make_feed(config, dataset, plan.epoch_steps, parallel)

    def measured(step: Any) -> Any:
        return is_measured(step, plan, tx.is_update_step)

    def step(may_update: bool) -> Any:
        train_step = make_train_step(
            model,
            tx,
            label_smoothing=config.label_smoothing,
            accumulation=config.accumulation,
            axis_name=parallel.axis_name,
            may_update=may_update,
            is_measured=measured if may_update else None,
        )
        return _with_topology(train_step)

    steps = {may_update: step(may_update) for may_update in (False, True)}
    eval_step = make_eval_step(model, axis_name=parallel.axis_name)
    return Run(
        config=config,
        plan=plan,
        dataset=dataset,
        parallel=parallel,
        feed=feed,
        first_state=first_state,
        image_size=side,
        steps=steps,
        train={
            may_update: parallel.train(over_chunk(step, feed.fetch))
            for may_update, step in steps.items()
        },
        is_update_step=tx.is_update_step,
        evaluate=parallel.evaluate(_of_chunk(eval_step, feed)),
        schedule=schedule,
        layer_counts=jax.jit(
            lambda opt_state: sj.count_active(sj.get_masks(opt_state), "layer")
        ),
    )
