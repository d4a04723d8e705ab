"""What a run is made of: data, network, optimizer and compiled steps."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.data import (
    Dataset,
    Feed,
    host_batches,
    load_dataset,
    make_feed,
    normalize,
    steps_per_epoch,
)
from experiments.methods import (
    class_balanced_batch,
    finds_masks,
    masks_before_training,
    names,
    sparse_optimizer,
)
from experiments.models import create_model
from experiments.optimizer import learning_rate, make_optimizer
from experiments.parallel import AXIS, Parallel, Preempted, make_parallel
from experiments.settings import check_config, following_batch
from experiments.step import (
    TrainState,
    create_state,
    first_variables,
    make_eval_step,
    make_train_step,
)

PyTree = Any
Batch = Mapping[str, jax.Array]


class Plan(NamedTuple):
    """The lengths of a run in steps: an epoch, the whole, between evaluations."""

    epoch_steps: int
    total_steps: int
    eval_every: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of."""

    config: ConfigDict  # the configuration, with its rate and intervals for its batch
    plan: Plan  # its lengths in steps
    dataset: Dataset  # the data
    parallel: Parallel  # how states and batches are placed
    feed: Feed  # where training batches come from
    # Masks -> a state at step 0, not placed; None for the method's own.
    create: Callable[[PyTree], TrainState]
    # () -> the state at step 0, pruned if the method does that before training.
    first_state: Callable[[], TrainState]
    image_size: int  # side of the images that the model sees
    # By whether the topology may change, the compiled step over a chunk.
    train: dict[bool, Any]
    is_update_step: Any  # a function of steps: where the topology changes
    evaluate: Any  # the compiled evaluation of a chunk
    schedule: Any  # step -> learning rate
    layer_counts: Any  # optimizer state -> active weights of each layer


def prepare_run(config: ConfigDict) -> Run:
    """Checks the configuration and the data, makes all of a run; compiles nothing."""
    check_config(config)
    _check_one_run(config)
    config = following_batch(config)
    dataset = load_dataset(
        config.dataset, config.data_dir, config.validation_examples, config.seed
    )
    plan = _plan(config, dataset)
    schedule = learning_rate(config, plan.total_steps, plan.epoch_steps)
    synchronized = config.sync_batch_norm and config.parallel == "pmap"
    model = _model(config, dataset, AXIS if synchronized else None)
    side = config.image_size or dataset.image_shape[0]
    shape = (side, side, dataset.image_shape[-1])

    def optimizer(masks: PyTree) -> sj.SparseTransformation:
        return sparse_optimizer(
            config.method,
            make_optimizer(config, schedule, config.method),
            config,
            plan.total_steps,
            sparsity=config.sparsity,
            seed=config.seed,
            masks=masks,
        )

    tx = optimizer(None)

    def create(masks: PyTree) -> TrainState:
        return create_state(model, optimizer, shape, config.seed, masks)

    def first_state() -> TrainState:
        masks = None
        if finds_masks(config.method):
            masks = first_masks(config, _model(config, dataset, None), dataset, shape)
        state = create(masks)
        if config.rescale_to_edge_of_chaos:
            state = _rescaled(state)
        return parallel.put_state(state)

    with _naming_the_model(config):
        abstract = jax.eval_shape(lambda: create(None))
    parallel = make_parallel(config.parallel, abstract, config.shard_state)
    feed = make_feed(config, dataset, plan.epoch_steps, parallel)

    def step(may_update: bool) -> Any:
        measured = functools.partial(is_measured, plan, tx.is_update_step)
        train_step = make_train_step(
            model,
            tx,
            label_smoothing=config.label_smoothing,
            accumulation=config.accumulation,
            axis_name=parallel.axis_name,
            may_update=may_update,
            is_measured=measured if may_update else None,
        )
        return parallel.train(_over_chunk(train_step, feed.fetch))

    eval_step = make_eval_step(model, axis_name=parallel.axis_name)
    return Run(
        config=config,
        plan=plan,
        dataset=dataset,
        parallel=parallel,
        feed=feed,
        create=create,
        first_state=first_state,
        image_size=side,
        train={may_update: step(may_update) for may_update in (False, True)},
        is_update_step=tx.is_update_step,
        evaluate=parallel.evaluate(_of_chunk(eval_step, feed)),
        schedule=schedule,
        layer_counts=jax.jit(
            lambda opt_state: sj.count_active(sj.get_masks(opt_state), "layer")
        ),
    )


def _check_one_run(config: ConfigDict) -> None:
    if config.method in names("after"):
        raise ValueError(
            f"method must be of one run; got {config.method!r}, which is trained in "
            "rounds: see `experiments.rounds`."
        )


def _rescaled(state: TrainState) -> TrainState:
    masks = sj.get_masks(state.opt_state)
    params = sj.rescale_to_edge_of_chaos(state.params, masks)
    return state._replace(params=params)


def _plan(config: ConfigDict, dataset: Dataset) -> Plan:
    devices = jax.device_count()
    if config.batch_size % (devices * config.accumulation):
        raise ValueError(
            f"batch_size must be divisible by the {devices} devices times "
            f"accumulation={config.accumulation}; got {config.batch_size}."
        )
    if config.num_classes not in (None, dataset.num_classes):
        raise ValueError(
            f"num_classes must be {dataset.num_classes} for {dataset.name}; got "
            f"{config.num_classes}."
        )
    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)
    return Plan(
        epoch_steps=epoch_steps,
        total_steps=config.total_steps or epoch_steps * config.epochs,
        eval_every=epoch_steps * config.evaluate_every_epochs,
    )


def _model(config: ConfigDict, dataset: Dataset, axis_name: str | None) -> nn.Module:
    with _naming_the_model(config):
        return create_model(
            config.model,
            dataset.num_classes,
            dtype=jnp.dtype(config.dtype),
            axis_name=axis_name,
            **config.model_options,
        )


@contextlib.contextmanager
def _naming_the_model(config: ConfigDict) -> Iterator[None]:
    """Makes one sentence of whatever a network's own code makes of its options."""
    try:
        yield
    except (ValueError, Preempted):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"model must fit model_options {dict(config.model_options)} and the "
            f"images; got {config.model!r}, which fails: {reason}"
        ) from error


def _over_chunk(train_step: Any, fetch: Any) -> Any:
    """Makes a step take a chunk of batches; a chunk of one is not scanned."""

    def run(state: TrainState, data: PyTree, chunk: PyTree) -> Any:
        def one(state: TrainState, item: PyTree) -> tuple[TrainState, PyTree]:
            state, metrics = train_step(state, fetch(data, item))
            for name in sj.Metrics._fields:
                metrics[name] = optax.tree.get(state.opt_state, name)
            return state, metrics

        if len(jax.tree.leaves(chunk)[0]) > 1:
            return jax.lax.scan(one, state, chunk)
        state, metrics = one(state, jax.tree.map(lambda x: x[0], chunk))
        return state, jax.tree.map(lambda x: x[None], metrics)

    return run


def _of_chunk(eval_step: Any, feed: Feed) -> Any:
    def run(state: TrainState, data: PyTree, chunk: PyTree) -> PyTree:
        batch = jax.tree.map(lambda x: x[0], chunk)
        return eval_step(state, batch | {"image": feed.normalize(batch["image"])})

    return run


def first_masks(
    config: ConfigDict,
    model: nn.Module,
    dataset: Dataset,
    image_shape: tuple[int, int, int],
) -> PyTree:
    """Finds masks on the batches that a run sees first, spread over all devices.

    They are NumPy arrays, the same in every process. Each round sees the next batches;
    GraSP sees as many images of each class, drawn from the first epoch. Batch norm sees
    the whole batch, whatever it sees in training, and labels are not smoothed.
    """
    mesh = Mesh(np.array(jax.devices()), (AXIS,))

    def put(leaf: Any, spec: P) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    variables = jax.tree.map(
        lambda leaf: put(leaf, P()), first_variables(model, image_shape, config.seed)
    )
    stats = variables.get("batch_stats", {})

    epoch_steps = steps_per_epoch(len(dataset.train), config.batch_size)

    def placed(batches: Iterator[Any]) -> Iterator[Batch]:
        for batch in batches:
            yield jax.tree.map(lambda leaf: put(leaf, P(AXIS)), batch)

    def balanced() -> Iterator[Batch]:
        return _balanced(config, dataset, epoch_steps, mesh)

    def apply_fn(params: PyTree, images: Any) -> Any:
        return model.apply({"params": params, "batch_stats": stats}, images)

    def loss_fn(params: PyTree, batch: Batch, temperature: float = 1.0) -> jax.Array:
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            normalize(batch["image"], dataset.mean, dataset.std),
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits / temperature, batch["label"]
        )
        return losses.mean()

    dense_steps = config.drive_dense_epochs * epoch_steps
    with contextlib.closing(host_batches(config, dataset)) as read:
        stream = placed(read)
        masks = masks_before_training(
            config.method,
            variables["params"],
            config.sparsity,
            loss_fn=loss_fn,
            batches=lambda _: itertools.islice(stream, config.initialization_batches),
            balanced=balanced,
            dense_batches=lambda: itertools.islice(stream, dense_steps),
            apply_fn=apply_fn,
            image_shape=image_shape,
            rounds=config.initialization_rounds,
            prunable=config.prunable,
        )
    return jax.tree.map(np.asarray, masks)


def _balanced(
    config: ConfigDict, dataset: Dataset, epoch_steps: int, mesh: Mesh
) -> Iterator[Batch]:
    """Reads the same class-balanced batches in every process, of the run's size."""
    whole, count = [], np.zeros(dataset.num_classes, int)
    with contextlib.closing(host_batches(config, dataset, all_rows=True)) as every:
        for batch in itertools.islice(every, epoch_steps):
            whole.append((batch["image"], batch["label"]))
            count += np.bincount(batch["label"], minlength=len(count))
            if min(count) >= config.grasp_images_per_class:
                break
    images, labels = map(np.concatenate, zip(*whole))
    drawn = class_balanced_batch(
        images, labels, config.grasp_images_per_class, config.seed
    )
    parts = -(-len(drawn[1]) // config.batch_size)  # of nearly one size

    def put(leaf: np.ndarray) -> jax.Array:
        spec = P() if len(leaf) % len(jax.devices()) else P(AXIS)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    for image, label in zip(*(np.array_split(each, parts) for each in drawn)):
        yield {"image": put(image), "label": put(label)}


def is_measured(plan: Plan, is_update_step: Any, step: Any) -> Any:
    """Whether the topology is measured: at its updates, and before evaluations."""
    done = step + 1
    evaluated = (done % plan.eval_every == 0) | (done == plan.total_steps)
    return is_update_step(step) | evaluated
