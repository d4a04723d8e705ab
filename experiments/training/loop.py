"""The training loop: from a configuration to a trained network and its record."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.record.configuration import differences
from experiments.record.environment import write_run_header
from experiments.record.files import write_atomically
from experiments.record.metrics import MetricWriter
from experiments.record.progress import Progress
from experiments.record.report import write_report
from experiments.record.storage import Storage, open_storage
from experiments.training.checkpoint import Best, Checkpointer
from experiments.training.feed import evaluation_chunks
from experiments.training.plan import chunk_sizes
from experiments.training.preemption import Preempted, PreemptionWatch
from experiments.training.program import make_program
from experiments.training.recorder import (
    Clock,
    Recorder,
    check_same_masks,
    layer_table,
)
from experiments.training.run import Run, prepare_run
from experiments.training.sparse import is_at_sparsity
from experiments.training.state import TrainState


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


def _accuracy(run: Run, state: TrainState, split: Any) -> dict[str, float]:
    """Evaluates a split: mean loss and accuracy over its examples."""
    sums = [
        run.evaluate(state, (), chunk)
        for chunk in evaluation_chunks(run.config, split, run.image_size, run.parallel)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    return {name: total[name] / total["count"] for name in ("loss", "accuracy")}


def _evaluate(
    run: Run, state: TrainState, best: Best, writer: MetricWriter, step: int
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
    return train_side_by_side([config], [workdir])[0]


def train_side_by_side(
    configs: Sequence[ConfigDict], workdirs: Sequence[str | Path]
) -> list[Outcome]:
    """Trains several runs at once, their steps mapped over by `jax.vmap`.

    Each leaves the record and the checkpoints that it would leave alone, and can be
    gone on with alone or with others. Its numbers are those of the run alone up to the
    order of sums. Runs that start from different steps, as they were stopped there, are
    trained one group after the other.

    Args:
        configs: The experiments, which differ in their seeds alone. For more than one,
            `parallel` must be "jit" where there are several devices, and there can be
            one process only.
        workdirs: Where their records and checkpoints are.

    Returns:
        How each of them ended.

    Raises:
        ValueError: As `train_and_evaluate`, or if the runs cannot be side by side.
        Preempted: If they were asked to stop; their states are saved.
    """
    if len(configs) > 1:
        configs = _for_side_by_side(configs)
    with contextlib.ExitStack() as stack:
        lanes = []
        for config, workdir in zip(configs, workdirs):
            active = jax.process_index() == 0
            storage = stack.enter_context(open_storage(workdir, active=active))
            lanes.append(_open_lane(config, storage, stack))
        groups: dict[int, list[_Lane]] = {}
        for lane in lanes:
            groups.setdefault(lane.start, []).append(lane)
        for group in groups.values():
            _train(group)
        return [_finish(lane) for lane in lanes]


def _for_side_by_side(configs: Sequence[ConfigDict]) -> list[ConfigDict]:
    first, *others = (_plain(config) for config in configs)
    for other in others:
        found = differences(first | {"seed": None}, other | {"seed": None})
        if found:
            raise ValueError(
                f"runs side by side must differ in their seeds alone; got {found[0]}."
            )
    if jax.process_count() > 1:
        raise ValueError(
            f"runs side by side must be of one process; got {jax.process_count()}."
        )
    if first["shard_state"]:
        raise ValueError("shard_state must be False for runs side by side; got True.")
    configs = [config.copy_and_resolve_references() for config in configs]
    if jax.device_count() == 1:
        for config in configs:
            config.parallel = "jit"  # which means the same on one device
    if configs[0].parallel != "jit":
        raise ValueError(
            'parallel must be "jit" for runs side by side on several devices; got '
            f"{configs[0].parallel!r}."
        )
    return configs


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


@dataclasses.dataclass
class _Lane:
    """One of the runs that are trained side by side.

    Attributes:
        run: What stays the same.
        storage: Its directories.
        checkpoints: Its checkpoints.
        writer: Writes its record.
        recorder: Gathers what is written.
        start: The step that it starts from.
        state: The first, None while the run is trained, then the last.
        best: The best evaluation so far.
        test_accuracy: Of the last step, once that is reached.
        speed: Its steps a second, NaN if it is not known.
    """

    run: Run
    storage: Storage
    checkpoints: Checkpointer
    writer: MetricWriter
    recorder: Recorder
    start: int
    state: TrainState | None
    best: Best
    test_accuracy: float | None = None
    speed: float = math.nan

    def take_state(self) -> TrainState:
        """Gives the state away: training writes over it, or wants its memory."""
        state, self.state = self.state, None
        assert state is not None
        return state


def _open_lane(
    config: ConfigDict, storage: Storage, stack: contextlib.ExitStack
) -> _Lane:
    """Finds the state that a run starts from, and opens its record."""
    main = jax.process_index() == 0
    run = prepare_run(config)
    plain = _plain(config)
    checkpoints = Checkpointer(
        storage.checkpoints,
        plain,
        keep=config.keep_checkpoints,
        to_saved=run.parallel.to_saved,
        from_saved=run.parallel.put_state,
    )
    restored = checkpoints.restore(run.parallel.saved_like())
    if restored is None:
        state, best = run.first_state(), Best()
        check_same_masks(state, 0)
    else:
        state, best = restored
    start = int(state.step)
    if main:
        write_run_header(storage.record, plain | run.plan._asdict())
    writer = stack.enter_context(MetricWriter(storage.record, active=main))
    writer.truncate_after(-1 if restored is None else start)
    recorder = Recorder(run, writer, state)
    if restored is None:
        recorder.write_first_layers(state)
    return _Lane(run, storage, checkpoints, writer, recorder, start, state, best)


def _train(lanes: Sequence[_Lane]) -> None:
    """Trains runs that start from the same step to their end."""
    run, start = lanes[0].run, lanes[0].start
    config, total_steps = run.config, run.plan.total_steps
    clock = Clock()
    program = make_program([lane.run for lane in lanes], clock)
    state = program.join([lane.take_state() for lane in lanes])
    together = f", {len(lanes)} seeds" if len(lanes) > 1 else ""
    with (
        PreemptionWatch() as watch,
        contextlib.ExitStack() as stack,
        Progress(
            total_steps,
            examples_per_step=config.batch_size * len(lanes),
            initial_step=start,
            description=config.method + together,
            active=jax.process_index() == 0,
        ) as progress,
    ):
        plans = list(
            chunk_sizes(start, run.plan, config, run.feed.most, run.is_update_step)
        )
        sizes = [plan.size for plan in plans]
        chunks = stack.enter_context(contextlib.closing(program.chunks(start, sizes)))
        step = written = start
        for (size, may_update, measured), chunk in zip(plans, chunks):
            state, metrics = program.train[may_update](state, chunk)
            step += size
            for lane, own in zip(lanes, metrics):
                lane.recorder.add(step, own, measured)
            progress.update(step)
            last = step == total_steps
            stop = watch.should_stop(step) and not last
            evaluate = last or step % run.plan.eval_every == 0
            save = last or stop or step % config.checkpoint_every_steps == 0
            if evaluate or save or step % config.log_every_steps == 0:
                found = [lane.recorder.write(step) for lane in lanes]
                if any(each.changed for each in found):
                    check_same_masks(state, step)
                _watch_speed(lanes, step, clock.lap(step - written))
                progress.update(step, found[0].means)
                written = step
            if evaluate or save:
                for lane, own in zip(lanes, program.split(state)):
                    # Before the last checkpoint: a kill must not lose it.
                    if evaluate:
                        lane.best, lane.test_accuracy = _evaluate(
                            lane.run, own, lane.best, lane.writer, step
                        )
                    if save:
                        lane.writer.flush()
                        lane.storage.publish()
                        lane.checkpoints.save(own, lane.best)
                clock.start()
            if stop:
                for lane in lanes:
                    lane.checkpoints.close()
                raise Preempted(f"stopped at step {step}; run the command again.")
    for lane, own in zip(lanes, program.split(state)):
        lane.state, lane.speed = own, clock.speed()


def _watch_speed(lanes: Sequence[_Lane], step: int, speed: float) -> None:
    if not math.isfinite(speed):
        return
    for lane in lanes:
        examples = speed * lane.run.config.batch_size
        lane.writer.watch(step, "train/examples_per_second", examples)


def _finish(lane: _Lane) -> Outcome:
    """Writes what a run has come to."""
    run, state = lane.run, lane.take_state()
    if lane.test_accuracy is None:  # resumed at its end
        lane.test_accuracy = _accuracy(run, state, run.dataset.test)["accuracy"]
    lane.checkpoints.close()
    layers = layer_table(run, state)
    if jax.process_index() == 0:
        text = json.dumps(layers, indent=1)
        write_atomically(lane.storage.record / "layers.json", f"{text}\n")
        write_report(lane.storage.record)
    return Outcome(
        run.parallel.to_saved(state),
        lane.test_accuracy,
        lane.best,
        lane.speed * run.config.batch_size,
    )
