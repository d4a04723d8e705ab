"""Pruning after training, a method of the comparison: train, prune, train again.

The dense network is trained as the others are. Then each round prunes by magnitude,
all layers together, and trains a whole run once more under the masks, with the same
order of examples and new momentum. With w the weights at the end of the run before,

    one shot         to the sparsity at once; from w, at a part of the learning rate,
    fine-tuning      in rounds; from w, at that part of the learning rate,
    rate rewinding   in rounds; from w, at the learning rate of any other run,
    lottery ticket   in rounds; from the first weights, at that learning rate.

The papers fine-tune at the last learning rate; here that is 0, the end of a cosine.
`sparsejax.methods.lottery` names the papers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison import replicas as rep
from experiments.comparison.courses import Course
from experiments.comparison.training import make_program, train
from experiments.input.digits import Split

PyTree = Any


class Form(NamedTuple):
    """How a network is pruned after training.

    Attributes:
        label: Its name in reports.
        in_rounds: Whether it is pruned in rounds, or at once.
        rewinds_weights: Whether it is trained again from its first weights.
        rewinds_rate: Whether the learning rate is that of any other run.
    """

    label: str
    in_rounds: bool
    rewinds_weights: bool
    rewinds_rate: bool


# In the order of reports.
FORMS = {
    "one_shot": Form("One shot, fine-tuned", False, False, False),
    "fine_tuning": Form("Rounds, fine-tuned", True, False, False),
    "rate_rewinding": Form("Rounds, rate rewound", True, False, True),
    "lottery": Form("Lottery ticket", True, True, True),
}
LABELS = {name: form.label for name, form in FORMS.items()}


def plan_rounds(
    form: Form, size: int, sparsities: Sequence[float], fraction: float
) -> dict[float, list[int]]:
    """Plans how a network gets to each sparsity.

    Args:
        form: How it is pruned.
        size: Its prunable weights.
        sparsities: The sparsities asked for.
        fraction: About which part of the active weights a round drops.

    Returns:
        By sparsity, the active weights after each round.

    Raises:
        ValueError: If two sparsities leave as many weights, or one leaves none.

    Example:
        >>> plan_rounds(FORMS["lottery"], 1000, [0.2, 0.5], 0.2)
        {0.2: [800], 0.5: [800, 632, 500]}
        >>> plan_rounds(FORMS["one_shot"], 1000, [0.2, 0.5], 0.2)
        {0.2: [800], 0.5: [500]}
    """
    counts = sj.lottery_counts(size, sorted(set(sparsities)), fraction)
    ends = {sparsity: int(sj.keep_count(sparsity, size)) for sparsity in sparsities}
    if not form.in_rounds:
        return {sparsity: [end] for sparsity, end in ends.items()}
    return {sparsity: counts[: counts.index(end) + 1] for sparsity, end in ends.items()}


def train_and_prune(
    name: str,
    model: nn.Module,
    pairs: Sequence[tuple[float, int]],
    data: Split,
    config: ConfigDict,
) -> list[list[Course]]:
    """Trains dense networks, prunes them and trains them again.

    Args:
        name: A key of `FORMS`.
        model: Maps images to logits.
        pairs: The (sparsity, seed) of each run. In rounds, a network that was pruned to
            one sparsity is pruned on to the next.
        data: The data.
        config: `round_fraction`, `fine_tuning_factor`, and what any run needs, as in
            `experiments/configs/digits.py`.

    Returns:
        All courses of training of each run, the dense one first.

    Raises:
        ValueError: If the sparsities do not fit the network.
    """
    form = FORMS[name]
    seeds = list(dict.fromkeys(seed for _, seed in pairs))
    start = rep.stack([rep.first_params(model, s, data.train.images) for s in seeds])
    masks = jax.vmap(sj.dense_masks)(start)
    size = sj.count_prunable(masks) // len(seeds)
    sparsities = [sparsity for sparsity, _ in pairs]
    plan = plan_rounds(form, size, sparsities, config.round_fraction)

    program = make_program("static", model, data, config)
    again = program
    if not form.rewinds_rate:
        rate = config.fine_tuning_factor * config.learning_rate
        again = make_program("static", model, data, config, learning_rate=rate)
    numbers = jnp.asarray(seeds, jnp.int32)
    replicas = rep.Replica(numbers, jnp.zeros(len(seeds)), masks)
    trained = train(program, replicas, start, data, f"{form.label}, dense")

    # The networks pruned side by side, and which of them is a run's.
    if form.in_rounds:
        longest = max(plan.values(), key=len)
        chains = [(seed, longest) for seed in seeds]
        chain_of = [seeds.index(seed) for _, seed in pairs]
    else:
        chains = [(seed, plan[sparsity]) for sparsity, seed in pairs]
        chain_of = list(range(len(pairs)))
    rows = np.array([seeds.index(seed) for seed, _ in chains])
    start, trained_params, masks, numbers = jax.tree.map(
        lambda x: x[rows], (start, trained.params, masks, numbers)
    )
    courses = [[trained.courses[row]] for row in rows]

    rounds = [np.array(counts) for counts in zip(*(counts for _, counts in chains))]
    for number, counts in enumerate(rounds, 1):
        origin = start if form.rewinds_weights else trained_params
        params, masks = _prune(trained_params, origin, masks, counts)
        sparsity = jnp.asarray(1 - counts / size, jnp.float32)
        replicas = rep.Replica(numbers, sparsity, masks)
        which = f"{form.label}, round {number} of {len(rounds)}"
        trained = train(again, replicas, params, data, which)
        trained_params = trained.params
        for so_far, course in zip(courses, trained.courses):
            so_far.append(course)
    return [
        courses[chain][: 1 + len(plan[sparsity])]
        for chain, (sparsity, _) in zip(chain_of, pairs)
    ]


@jax.jit
@jax.vmap
def _prune(
    trained: PyTree, origin: PyTree, masks: PyTree, count: Any
) -> tuple[PyTree, PyTree]:
    return sj.lottery_ticket(trained, origin, masks, keep=count)
