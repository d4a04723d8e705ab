"""Pruning after training on images: rounds of training, pruning, and going back.

The dense network is trained first. Each round prunes by magnitude, all layers together,
and trains once more under the masks, with new momentum:

    lottery          from the weights at `rewind_epochs` (Frankle et al., 1912.05671)
    rate_rewinding   from the trained weights, with the rate of a whole run (Renda et
                     al., 2003.02389)
    fine_tuning      from the trained weights, with the rate of the end of a run
    one_shot         the same, in one round

A round is a run of its own in `round_0`, `round_1`, ... of the workdir, with record,
report and checkpoints: it is resumed and evaluated as any other.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.checkpoint import Checkpointer
from experiments.run import Run
from experiments.settings import check_config
from experiments.step import TrainState
from experiments.train import Outcome, open_rewind, train_and_evaluate


def train_rounds(config: ConfigDict, workdir: str | Path) -> Outcome:
    """Trains the rounds that are not finished; returns how the last one ended."""
    check_config(config)
    rewinds = config.method == "lottery"
    if rewinds and config.rewind_epochs % config.evaluate_every_epochs:
        raise ValueError(
            "rewind_epochs must be a multiple of evaluate_every_epochs="
            f"{config.evaluate_every_epochs}; got {config.rewind_epochs}."
        )
    outcome = train_and_evaluate(
        _changed(config, method="dense", sparsity=0.0),
        f"{workdir}/round_0",
        rewind_epochs=config.rewind_epochs if rewinds else 0,
    )
    prunable = sj.count_prunable(sj.get_masks(outcome.state.opt_state))
    counts = [sj.keep_count(config.sparsity, prunable)]
    if config.method != "one_shot":
        counts = sj.lottery_counts(prunable, [config.sparsity], config.round_fraction)
    for number, count in enumerate(map(int, counts), 1):
        start = functools.partial(
            _start_of_round, config, f"{workdir}/round_0", outcome.state, count
        )
        outcome = train_and_evaluate(
            _changed(config, method="static", sparsity=1 - count / prunable),
            f"{workdir}/round_{number}",
            start=start,
        )
    return outcome


def _changed(config: ConfigDict, **changes: Any) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update(changes)
    return config


def _start_of_round(
    config: ConfigDict, first_round: str, trained: TrainState, count: int, run: Run
) -> TrainState:
    """Prunes a trained state and goes back: to earlier weights, or an earlier rate."""
    origin, step = trained, 0
    if config.method == "lottery":
        step = config.rewind_epochs * run.plan.epoch_steps
        origin = run.create(sj.dense_masks(trained.params, config.prunable))
        if step:
            kept: Checkpointer = open_rewind(run, first_round)
            restored = kept.restore(run.parallel.saved_like())
            kept.close()
            if restored is None:
                raise ValueError(f"'{first_round}' must hold a state to rewind to.")
            origin = restored.state
    elif config.method != "rate_rewinding":
        step = round((1 - config.fine_tune_share) * run.plan.total_steps)
    params, masks = sj.lottery_ticket(
        trained.params, origin.params, sj.get_masks(trained.opt_state), keep=count
    )
    state = run.create(masks)
    at = jnp.int32(step)

    def is_counter(path: Sequence[Any], value: Any) -> bool:
        # Of the rate and the masks; Adam's own begins anew, as its moments do.
        owner = getattr(path[-1], "tuple_name", "")
        return owner in ("ScaleByScheduleState", "SparsifyState")

    return state._replace(
        step=at,
        params=params,
        batch_stats=origin.batch_stats,
        opt_state=optax.tree.set(state.opt_state, is_counter, count=at, step=at),
    )
