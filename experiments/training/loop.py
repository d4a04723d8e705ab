"""The training loop: from a configuration to a trained network and its record."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

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
from experiments.training.recorder import Recorder, check_same_masks, layer_table
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
    with open_storage(workdir, active=jax.process_index() == 0) as storage:
        return _train(config, storage)


def _train(config: ConfigDict, storage: Storage) -> Outcome:
    main = jax.process_index() == 0
    run, first = prepare_run(config)
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
        check_same_masks(state, 0)
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
        recorder = Recorder(run, writer, progress, state)
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
    layers = layer_table(run, state)
    if main:
        text = json.dumps(layers, indent=1)
        write_atomically(storage.record / "layers.json", f"{text}\n")
        write_report(storage.record)
    saved = run.parallel.to_saved(state)
    return Outcome(saved, test_accuracy, best, recorder.speed())
