"""The image trainer: from a configuration to a checkpoint and its record.

`train_and_evaluate` opens the workdir, finds where to start, trains and writes the end;
`_train` is the loop: a chunk of steps, then what is due at its end. What a run is made
of is in `experiments.run`, one step in `experiments.step`, where batches come from in
`experiments.data`, where states are placed in `experiments.parallel`.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from experiments.checkpoint import Best, Checkpointer
from experiments.data import evaluation_chunks
from experiments.files import write_atomically
from experiments.methods import is_at_sparsity
from experiments.parallel import PreemptionWatch
from experiments.record import (
    REWIND,
    MetricWriter,
    Progress,
    Storage,
    open_storage,
    write_run_header,
)
from experiments.recorder import Clock, Recorder, Trace, check_same_masks, layer_table
from experiments.run import Plan, Run, is_measured, prepare_run
from experiments.step import TrainState


class Outcome(NamedTuple):
    """How a run ended."""

    state: TrainState  # the last state, as it is saved
    test_accuracy: float  # of the last step, in [0, 1]
    best: Best  # the step of the highest validation accuracy, and its accuracies
    # Of training alone, without compiling, evaluating and saving; NaN where there was
    # too little to measure.
    examples_per_second: float


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    *,
    start: Callable[[Run], TrainState] | None = None,
    rewind_epochs: int = 0,
) -> Outcome:
    """Trains from the newest checkpoint, or from scratch, to the end of the run.

    `start` makes another first state; the one after `rewind_epochs` is kept.

    What does not fit in the configuration, the data or the workdir is a ValueError of
    one sentence, before anything is compiled. Raises `Preempted` when it was asked to
    stop and has saved its state.
    """
    main = jax.process_index() == 0
    with _full_disk_in_a_sentence(workdir), contextlib.ExitStack() as stack:
        storage = stack.enter_context(open_storage(workdir, active=main))
        run = prepare_run(config)
        plain = json.loads(config.to_json_best_effort())
        checkpoints, best_checkpoint = (
            Checkpointer(
                folder,
                plain,
                keep=keep,
                to_saved=run.parallel.to_saved,
                from_saved=run.parallel.put_state,
            )
            for folder, keep in (
                (storage.checkpoints, config.keep_checkpoints),
                (storage.best, 1),
            )
        )
        restored = checkpoints.restore(run.parallel.saved_like())
        notes: Mapping[str, Any] = {}
        if restored is None:
            state, best = run.first_state(), Best()
            if start is not None:
                state = run.parallel.put_state(start(run))
            check_same_masks(state, 0)
        else:
            state, best, notes = restored
            _warn_of_other_shares(run, state, notes)
        if main:
            write_run_header(storage.record, plain | run.plan._asdict())
        writer = stack.enter_context(MetricWriter(storage.record, active=main))
        writer.truncate_after(-1 if restored is None else int(state.step))
        recorder = Recorder(run, writer, state, notes.get("window"))
        if restored is None:
            recorder.write_first_layers(state)
        job = Job(run, storage, checkpoints, best_checkpoint, recorder, best)
        if rewind_epochs:
            job.rewind_step = rewind_epochs * run.plan.epoch_steps
        state, speed = _train(job, state)
        if job.test_accuracy is None:  # resumed at its end
            job.test_accuracy = accuracy(run, state, run.dataset.test)["accuracy"]
        checkpoints.close()
        best_checkpoint.close()
        _write_end(run, storage, state)
        return Outcome(run.parallel.to_saved(state), job.test_accuracy, job.best, speed)


@contextlib.contextmanager
def _full_disk_in_a_sentence(workdir: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"workdir must have room for the record; got '{workdir}': "
            f"{error.strerror}; run the command again when it has."
        ) from error


def _write_end(run: Run, storage: Storage, state: TrainState) -> None:
    """Writes the final layers and the report."""
    layers = layer_table(run, state)
    if jax.process_index() == 0:
        from experiments.report import write_report  # late: Matplotlib takes a second

        text = json.dumps(layers, indent=1)
        write_atomically(storage.record / "layers.json", f"{text}\n")
        write_report(storage.record)


# The loop.


class Chunk(NamedTuple):
    """Steps that run in one compiled call."""

    size: int  # how many
    # Whether it is the program that can change and measure the topology.
    may_update: bool
    measured: bool  # whether the topology is measured; then the size is 1


def plan_chunks(
    start: int, plan: Plan, config: ConfigDict, most: int, is_update_step: Any
) -> Iterator[Chunk]:
    """Splits what is left of a run into chunks that end where something is to be done.

    Sizes are `steps_per_call` where the topology is let alone, or 1 up to the next such
    place, so that two programs are compiled and no more; the first has nothing of a
    topology update in it.
    """
    size, step = min(config.steps_per_call, most), start
    stops = (config.log_every_steps, config.checkpoint_every_steps, plan.eval_every)
    every_step = np.arange(plan.total_steps)
    measured = np.flatnonzero(is_measured(plan, is_update_step, every_step))
    while step < plan.total_steps:
        coming = int(measured[np.searchsorted(measured, step)])  # the last step is one
        left = min(coming - step, *(stop - step % stop for stop in stops))
        taken = size if left >= size else 1
        yield Chunk(taken, may_update=left < size, measured=left == 0)
        step += taken


@dataclasses.dataclass
class Job:
    """A run and what becomes of it."""

    run: Run  # what stays the same
    storage: Storage  # its directories
    checkpoints: Checkpointer  # its checkpoints
    best_checkpoint: Checkpointer  # the checkpoint of the best evaluation
    recorder: Recorder  # gathers what is written
    best: Best  # the best evaluation so far
    test_accuracy: float | None = None  # of the last step, once that is reached
    rewind_step: int | None = None  # the step whose state is kept to rewind to

    def save(self, state: TrainState, window: Mapping[str, Any]) -> None:
        """Saves all that the run needs to go on."""
        self.recorder.writer.flush()
        self.storage.publish()
        shares = _batch_norm_shares(self.run, state)
        self.checkpoints.save(
            state, best=self.best._asdict(), window=window, batch_norm_shares=shares
        )


def _train(job: Job, state: TrainState) -> tuple[TrainState, float]:
    """Trains to the end of the run; returns the last state and images a second."""
    run, recorder, start = job.run, job.recorder, int(state.step)
    config, total_steps, clock = run.config, run.plan.total_steps, Clock()
    plan = functools.partial(
        plan_chunks, start, run.plan, config, run.feed.most, run.is_update_step
    )
    train = {may: clock.without_compiling(step) for may, step in run.train.items()}
    with (
        PreemptionWatch() as watch,
        contextlib.closing(run.feed.chunks(start, (c.size for c in plan()))) as chunks,
        contextlib.closing(Trace(config, job.storage.record)) as trace,
        Progress(
            total_steps,
            examples_per_step=config.batch_size,
            initial_step=start,
            description=config.method,
            active=jax.process_index() == 0,
        ) as progress,
    ):
        step = written = start
        for chunk, batches in zip(plan(), clock.waiting_for(chunks)):
            trace.reach(step, state)
            state, metrics = train[chunk.may_update](state, run.feed.data, batches)
            step += chunk.size
            recorder.add(step, metrics, chunk.measured)
            progress.update(step)
            last = step == total_steps
            stop = watch.should_stop(step) and not last
            evaluate = last or step % run.plan.eval_every == 0
            save = last or step % config.checkpoint_every_steps == 0
            window: Mapping[str, Any] = {}
            if evaluate or save or step % config.log_every_steps == 0:
                found = recorder.write(step)
                if found.changed:
                    check_same_masks(state, step)
                recorder.watch(step, clock.lap(step - written))
                progress.update(step, found.means)
                written = step
            elif stop:  # no line more than a run that is not stopped has
                window = recorder.hold(step)
            if step == job.rewind_step:
                kept = open_rewind(run, job.storage.checkpoints.parent)
                kept.save(state, best=Best()._asdict())
                kept.close()
            if evaluate:  # before the last checkpoint: a kill must not lose it
                _evaluate(job, state, step)
            if save or stop:
                job.save(state, window)
            if evaluate or save:
                clock.start()
            if stop:
                job.checkpoints.close()
                job.best_checkpoint.close()
                raise watch.preempted(step)
    return state, clock.speed() * config.batch_size


def open_rewind(run: Run, workdir: Any) -> Checkpointer:
    """Opens the one checkpoint that rounds of pruning go back to."""
    folder = epath.Path(workdir).absolute() / REWIND
    to_saved, from_saved = run.parallel.to_saved, run.parallel.put_state
    return Checkpointer(folder, {}, 1, to_saved, from_saved)


def accuracy(run: Run, state: TrainState, split: Any) -> dict[str, float]:
    """Evaluates a split: means over its examples."""
    sums = [
        run.evaluate(state, (), chunk)
        for chunk in evaluation_chunks(run.config, split, run.image_size, run.parallel)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    count = total.pop("count")
    return {name: value / count for name, value in total.items()}


def _evaluate(job: Job, state: TrainState, step: int) -> None:
    """Evaluates on the validation split, and where it is due on the test split.

    The test accuracy is recorded for the last step and for those that validation has
    chosen, among the steps at which the masks are at the sparsity asked for; it chooses
    nothing itself.
    """
    run, writer = job.run, job.recorder.writer
    validation, is_best = None, False
    if len(run.dataset.validation):
        validation = accuracy(run, state, run.dataset.validation)
        writer.write(step, validation, "validation")
        sparsity = float(optax.tree.get(state.opt_state, "sparsity"))
        config = run.config
        is_best = validation["accuracy"] > job.best.validation_accuracy and bool(
            is_at_sparsity(config.method, config.sparsity, sparsity)
        )
    if not is_best and step != run.plan.total_steps:
        return
    test = accuracy(run, state, run.dataset.test)
    writer.write(step, test, "test")
    if step == run.plan.total_steps:
        job.test_accuracy = test["accuracy"]
    if is_best and validation is not None:
        job.best = Best(step, validation["accuracy"], test["accuracy"])
        if run.config.keep_best:
            job.best_checkpoint.save(state, best=job.best._asdict())


def _batch_norm_shares(run: Run, state: TrainState) -> int:
    """Counts the parts of a batch that batch norm sees one by one."""
    alone = run.config.parallel == "pmap" and not run.config.sync_batch_norm
    return jax.device_count() if alone and state.batch_stats else 1


def _warn_of_other_shares(
    run: Run, state: TrainState, notes: Mapping[str, Any]
) -> None:
    before, now = notes.get("batch_norm_shares"), _batch_norm_shares(run, state)
    if before not in (None, now) and jax.process_index() == 0:
        logging.warning(
            "Batch norm saw a batch in %d parts and now sees it in %d, as the devices "
            "or `parallel` have changed: from here on it is another experiment; "
            "config.sync_batch_norm=True is the same on any number.",
            before,
            now,
        )


def describe_start(config: ConfigDict) -> str:
    """Says how many processes, devices and images a device there are."""
    processes, devices = jax.process_count(), jax.device_count()

    def count(number: int, one: str, more: str) -> str:
        return f"{number} {one if number == 1 else more}"

    return (
        f"{count(processes, 'process', 'processes')}, "
        f"{count(devices, 'device', 'devices')}, "
        f"{config.batch_size // devices} images a device"
    )
