"""The training loop: from a configuration to a trained network and its record."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.input.datasets import Dataset, load_dataset
from experiments.models import create_model
from experiments.record.environment import write_run_header
from experiments.record.files import write_atomically
from experiments.record.metrics import MetricWriter
from experiments.record.progress import Progress
from experiments.record.report import write_report
from experiments.record.storage import Storage, open_storage
from experiments.training import before_training
from experiments.training.checkpoint import Best, Checkpointer
from experiments.training.feed import Feed, evaluation_chunks, make_feed
from experiments.training.first_masks import first_masks
from experiments.training.measures import Measures, named
from experiments.training.optimizer import learning_rate, make_optimizer
from experiments.training.parallel import AXIS, Parallel, make_parallel
from experiments.training.plan import Plan, chunk_sizes, is_measured, plan_run
from experiments.training.preemption import Preempted, PreemptionWatch
from experiments.training.sparse import is_at_sparsity, sparse_optimizer
from experiments.training.state import TrainState, checksum, create_state
from experiments.training.steps import EvalStep, make_eval_step, make_train_step
from sparsejax.trees import leaves_with_paths, mask_leaves

PyTree = Any


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        state: The last state, as it is saved.
        test_accuracy: Of the last step, in [0, 1].
        best: The step of the highest validation accuracy, and its accuracies.
        examples_per_second: Of training alone, without compiling, evaluating and
            saving; NaN where there was too little to measure.
    """

    state: TrainState
    test_accuracy: float
    best: Best
    examples_per_second: float


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    config: ConfigDict
    plan: Plan
    dataset: Dataset
    parallel: Parallel
    feed: Feed
    image_size: int
    train: Any  # by whether the topology may change
    is_update_step: Any
    evaluate: Any
    schedule: Any
    layer_counts: Any


def _over_steps(step: Any, fetch: Any) -> Any:
    """Makes a step take a chunk of batches; a chunk of one is not scanned."""

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


def _with_figures(train_step: Any) -> Any:
    """Adds the topology's figures to a step's metrics."""

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, PyTree]:
        state, metrics = train_step(state, batch)
        for name in sj.TopologyFigures._fields:
            metrics[name] = optax.tree.get(state.opt_state, name)
        return state, metrics

    return step


class _Start(NamedTuple):
    """How a run gets its first state.

    Attributes:
        masks: () -> the masks of a method that prunes before training; None of others.
        state: masks, or None for the method's own -> the state.
    """

    masks: Callable[[], PyTree]
    state: Callable[[PyTree], TrainState]


def _prepare(config: ConfigDict) -> tuple[_Run, _Start]:
    """Checks the configuration and the data; compiles nothing."""
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

    def masks() -> PyTree:
        if config.method not in before_training.LABELS:
            return None
        return first_masks(config, make_model(), dataset, shape)

    def create(masks: PyTree) -> TrainState:
        return create_state(model, optimizer(masks), shape, config.seed)

    parallel = make_parallel(
        config.parallel, jax.eval_shape(lambda: create(None)), config.shard_state
    )
    feed = make_feed(config, dataset, plan.epoch_steps, parallel)

    def measured(step: Any) -> Any:
        return is_measured(step, plan, tx.is_update_step)

    def train(may_update: bool) -> Any:
        train_step = make_train_step(
            model,
            tx,
            label_smoothing=config.label_smoothing,
            accumulation=config.accumulation,
            axis_name=parallel.axis_name,
            may_update=may_update,
            is_measured=measured if may_update else None,
        )
        return parallel.train(_over_steps(_with_figures(train_step), feed.fetch))

    eval_step = make_eval_step(model, axis_name=parallel.axis_name)
    run = _Run(
        config=config,
        plan=plan,
        dataset=dataset,
        parallel=parallel,
        feed=feed,
        image_size=side,
        train={may_update: train(may_update) for may_update in (False, True)},
        is_update_step=tx.is_update_step,
        evaluate=parallel.evaluate(_of_chunk(eval_step, feed)),
        schedule=schedule,
        layer_counts=jax.jit(
            lambda opt_state: sj.count_active(sj.get_masks(opt_state), "layer")
        ),
    )
    return run, _Start(masks, lambda masks: parallel.put_state(create(masks)))


def _accuracy(run: _Run, state: TrainState, split: Any) -> dict[str, float]:
    """Evaluates a split: mean loss and accuracy over its examples."""
    sums = [
        run.evaluate(state, (), chunk)
        for chunk in evaluation_chunks(run.config, split, run.image_size, run.parallel)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    return {name: total[name] / total["count"] for name in ("loss", "accuracy")}


def _check_same_masks(state: TrainState, step: int) -> None:
    """Refuses to go on when processes have come to different masks."""
    if jax.process_count() == 1:
        return
    masks = sj.get_masks(state.opt_state)
    mine = np.asarray(jax.jit(checksum)(masks))
    everyone = np.asarray(multihost_utils.process_allgather(mine))
    if not (everyone == everyone[:1]).all():
        raise RuntimeError(f"masks differ between processes at step {step}.")


def _layer_table(run: _Run, state: TrainState) -> list[dict[str, Any]]:
    """Lists the leaves; every process computes it, as masks may be spread over them."""
    active = mask_leaves(jax.device_get(run.layer_counts(state.opt_state)))
    return [
        {
            "path": path,
            "shape": list(leaf.shape),
            "weights": int(leaf.size),
            "active": int(active[path]) if path in active else None,
        }
        for path, leaf in leaves_with_paths(state.params)
    ]


class _Recorder:
    """Gathers metrics on the devices and writes them down now and then."""

    def __init__(
        self, run: _Run, writer: MetricWriter, progress: Progress, state: TrainState
    ) -> None:
        self._run, self._writer, self._progress = run, writer, progress
        self._waiting: list[PyTree] = []
        self._measures: dict[int, Measures] = {}
        self._masks = jax.eval_shape(lambda: sj.get_masks(state.opt_state))
        self._events = _events(state)
        self._since = math.nan  # until the first chunk is through: it compiles
        self._examples, self._seconds = 0, 0.0
        self._compiled: set[bool] = set()

    def take(
        self, may_update: bool, state: TrainState, chunk: PyTree
    ) -> tuple[TrainState, PyTree]:
        """Takes the steps of a chunk; compiling a program is not timed as training."""
        train, data = self._run.train[may_update], self._run.feed.data
        if may_update in self._compiled:
            return train(state, data, chunk)
        self._compiled.add(may_update)
        jax.block_until_ready(state)  # or steps would run while nothing counts
        start = time.monotonic()
        taken = train(state, data, chunk)
        self._since += time.monotonic() - start
        return taken

    def add(self, step: int, metrics: PyTree, measured: bool) -> None:
        """Takes the metrics of a chunk that ends at a step, without waiting for it."""
        measures = metrics.pop("measures", None)
        if measured:
            self._measures[step] = measures
        self._waiting.append(metrics)
        self._progress.update(step)

    def write(self, step: int, state: TrainState) -> None:
        """Writes down what has come since the last time, up to a step."""
        if not self._waiting:
            return
        chunks, measures = jax.device_get((self._waiting, self._measures))
        self._waiting, self._measures = [], {}
        columns = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
        first = step - len(columns["loss"]) + 1
        events = columns["updates"] + columns["skipped"]
        new = np.flatnonzero(np.diff(events, prepend=self._events))
        self._events = int(events[-1])
        for at, found in measures.items():
            # An update, made or left out, has figures of its own.
            figures = sj.TopologyFigures._fields if at - first in new else ()
            line = {name: columns[name][at - first] for name in figures}
            self._writer.write(at, line | self._named(found), "topology")
        if new.size:
            _check_same_masks(state, step)
        means = {name: float(columns[name].mean()) for name in ("loss", "accuracy")}
        rate = float(self._run.schedule(step - 1))
        self._writer.write(step, means | {"learning_rate": rate}, "train")
        self._progress.update(step, means)
        self._measure(step, len(columns["loss"]) * self._run.config.batch_size)

    def _measure(self, step: int, examples: int) -> None:
        seconds = time.monotonic() - self._since
        if math.isfinite(seconds):
            self._examples += examples
            self._seconds += seconds
            self._writer.watch(step, "train/examples_per_second", examples / seconds)
        self.start_clock()

    def start_clock(self) -> None:
        """Measures the speed from now on, after something else than training."""
        self._since = time.monotonic()

    def speed(self) -> float:
        """Gives the mean speed so far in examples a second, NaN if it is not known."""
        return self._examples / self._seconds if self._seconds else math.nan

    def write_first_layers(self, state: TrainState) -> None:
        """Writes the density of each layer before the first step."""
        densities = {
            f"density/{layer['path']}": layer["active"] / layer["weights"]
            for layer in _layer_table(self._run, state)
            if layer["active"] is not None
        }
        self._writer.write(0, densities, "topology")

    def _named(self, measures: Measures) -> dict[str, float]:
        return named(jax.tree.map(lambda x: x[0], measures), self._masks)


def _events(state: TrainState) -> int:
    """Counts the topology updates so far, made or left out."""
    figures = jax.device_get(optax.tree.get(state.opt_state, "figures"))
    return int(figures.updates + figures.skipped)


def _evaluate(
    run: _Run, state: TrainState, best: Best, writer: MetricWriter, step: int
) -> tuple[Best, float | None]:
    """Evaluates on the validation split, and where it is due on the test split.

    The test accuracy is recorded for the last step and for those that validation has
    chosen, among the steps at which the masks are at the sparsity asked for; it chooses
    nothing itself.

    Returns the best evaluation so far, and the test accuracy of this step if known.
    """
    validation, is_best = None, False
    if len(run.dataset.validation):
        validation = _accuracy(run, state, run.dataset.validation)
        writer.write(step, validation, "validation")
        sparsity = float(optax.tree.get(state.opt_state, "sparsity"))
        config = run.config
        is_best = validation["accuracy"] > best.validation_accuracy and bool(
            is_at_sparsity(config.method, config.sparsity, sparsity)
        )
    if not is_best and step != run.plan.total_steps:
        return best, None
    test = _accuracy(run, state, run.dataset.test)
    writer.write(step, test, "test")
    if is_best and validation is not None:
        best = Best(step, validation["accuracy"], test["accuracy"])
    return best, test["accuracy"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> Outcome:
    """Trains from the newest checkpoint, or from scratch, to the end of the run.

    Args:
        config: The experiment; see `experiments.configs.common.base_config`.
        workdir: Where its record and its checkpoints are: a directory or a bucket.

    Returns:
        How it ended.

    Raises:
        ValueError: If something in the configuration, the data or the workdir does not
            fit, in one sentence and before anything is compiled; or if a checkpoint
            cannot be written.
        Preempted: If it was asked to stop; its state is saved.
    """
    with open_storage(workdir, active=jax.process_index() == 0) as storage:
        return _train(config, storage)


def _train(config: ConfigDict, storage: Storage) -> Outcome:
    main = jax.process_index() == 0
    run, first = _prepare(config)
    plain = json.loads(config.to_json_best_effort())
    checkpoints = Checkpointer(
        storage.checkpoints,
        plain,
        keep=config.keep_checkpoints,
        to_saved=run.parallel.to_saved,
        from_saved=run.parallel.put_state,
    )
    state, best = first.state(None), Best()
    restored = checkpoints.restore(state)
    if restored is not None:
        state, best = restored
    elif (masks := first.masks()) is not None:
        state = first.state(masks)
        _check_same_masks(state, 0)
    start = step = int(state.step)
    if main:
        plan = run.plan._asdict()
        write_run_header(storage.record, plain | plan)
    test_accuracy = None
    with (
        PreemptionWatch() as watch,
        contextlib.ExitStack() as stack,
        MetricWriter(storage.record, active=main) as writer,
        Progress(
            run.plan.total_steps,
            examples_per_step=config.batch_size,
            initial_step=start,
            description=config.method,
            active=main,
        ) as progress,
    ):
        writer.truncate_after(-1 if restored is None else start)
        recorder = _Recorder(run, writer, progress, state)
        if restored is None:
            recorder.write_first_layers(state)
        plans = list(
            chunk_sizes(start, run.plan, config, run.feed.most, run.is_update_step)
        )
        sizes = [plan.size for plan in plans]
        chunks = stack.enter_context(contextlib.closing(run.feed.chunks(start, sizes)))
        for (size, may_update, measured), chunk in zip(plans, chunks):
            state, metrics = recorder.take(may_update, state, chunk)
            step += size
            recorder.add(step, metrics, measured)
            last = step == run.plan.total_steps
            stop = watch.should_stop(step) and not last
            evaluate = last or step % run.plan.eval_every == 0
            save = last or stop or step % config.checkpoint_every_steps == 0
            if evaluate or save or step % config.log_every_steps == 0:
                recorder.write(step, state)
            if evaluate:  # before the last checkpoint: a kill must not lose it
                best, test_accuracy = _evaluate(run, state, best, writer, step)
            if save:
                writer.flush()
                storage.publish()
                checkpoints.save(state, best)
            if evaluate or save:
                recorder.start_clock()
            if stop:
                checkpoints.close()
                raise Preempted(f"stopped at step {step}; run the command again.")
        if not sizes:  # resumed at its end
            test_accuracy = _accuracy(run, state, run.dataset.test)["accuracy"]
    checkpoints.close()
    assert test_accuracy is not None
    layers = _layer_table(run, state)
    if main:
        text = json.dumps(layers, indent=1)
        write_atomically(storage.record / "layers.json", f"{text}\n")
        write_report(storage.record)
    saved = run.parallel.to_saved(state)
    return Outcome(saved, test_accuracy, best, recorder.speed())
