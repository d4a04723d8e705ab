"""From a checkpoint to a pruned network that can be trained on."""

from typing import Any

import jax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.plasticity_study.problem import inner_optimizer
from experiments.plasticity_study.settings import UNPRUNED, Setting
from experiments.training.state import TrainState
from sparsejax.slots import reset_slots
from sparsejax.trees import is_left_dense

PyTree = Any


def new_topology(
    params: PyTree, grads: PyTree, setting: Setting, exchange_rate: float
) -> tuple[PyTree, PyTree]:
    """Prunes a dense network, and regenerates where the setting says so.

    Filters are those of convolutions: with unit "filter", dense layers stay dense.

    Args:
        params: The parameters.
        grads: Dense gradients, before pruning.
        setting: What to do.
        exchange_rate: The fraction of each layer's units that "exchange" exchanges.

    Returns:
        (kept, masks): the weights that go on, and all that are active, of all prunable
        weights. What has grown is in the second alone, and starts from 0.
    """
    everything = sj.dense_masks(params)
    if setting == UNPRUNED:
        return everything, everything
    convolutions = None
    if setting.unit == "filter":
        convolutions = lambda path, leaf: leaf.ndim == 4
    dense = sj.dense_masks(params, convolutions)
    kept = masks = sj.prune_once(
        params, dense, setting.rate, scope=setting.scope, unit=setting.unit
    )
    match setting.regeneration:
        case "as_many":
            masks = sj.regenerate(grads, kept, dense, unit=setting.unit)
        case "exchange":
            pruned = kept
            kept = sj.prune_once(params, pruned, exchange_rate, unit=setting.unit)
            masks = sj.regenerate(grads, kept, pruned, unit=setting.unit)

    def complete(masks: PyTree) -> PyTree:
        return jax.tree.map(
            lambda new, old: old if is_left_dense(new) else new,
            masks,
            everything,
            is_leaf=is_left_dense,
        )

    return complete(kept), complete(masks)


def with_topology(
    state: TrainState, kept: PyTree, masks: PyTree, config: ConfigDict
) -> TrainState:
    """Gives a checkpoint new masks, which it keeps while it is trained on.

    Args:
        state: The checkpoint.
        kept: The weights that go on.
        masks: Its new masks; what they have beyond `kept` starts from 0, without
            momentum.
        config: As in `experiments/configs/plasticity_digits.py`.

    Returns:
        The state, with exact zeros where masks are False or weights have grown.
    """
    params = sj.apply_masks(state.params, kept)
    inner = inner_optimizer(config, 0.0)
    start = sj.static_transform(inner, masks=masks).init(params)
    slots = reset_slots(inner, state.opt_state.inner_state, params, kept, masks, True)
    opt_state = start._replace(step=state.opt_state.step, inner_state=slots)
    return state._replace(params=params, opt_state=opt_state)
