"""SRigL: RigL with the same fan-in for every neuron, and without weak neurons.

Lasby et al., "Dynamic Sparse Training with Structured Sparsity", arXiv 2305.02299. From
random masks with k active weights in each neuron. At each update step up to T_end, in
each layer with K active weights, prune rate r(t) = r_0 (1 + cos(pi t / T_end)) / 2 and
n = ceil(r K):

1. salient are the K - n largest |w| of the layer and its n largest |dL/dw|;
2. a neuron with fewer than max(1, floor(gamma k)) salient weights is ablated, its mask
   emptied; at least so many neurons stay that the budget still fits in them;
3. those that stay have the new fan-in k' = floor(budget / active neurons);
4. of the K - n largest |w|, each active neuron keeps at most its k' largest;
5. each active neuron grows weights of largest |dL/dw| up to k'.

The budget B is the layer's share of the sparsity, and k = floor(B / neurons). So a
layer holds exactly k' * active neurons weights: less than one a neuron below B. Neurons
are judged anew at each update: an ablated one comes back where its gradients are
salient. A neuron is an entry of a kernel's last axis; see `sparsejax.patterns`.

A layer without sparsity is left alone, as in the official code. What differs from it:
|w| is ranked among active weights alone; step 4 keeps a neuron's largest |w|, not its
first; where the budget sets how many neurons stay, exactly the best are taken, not
their ties; a weight dropped and grown in one update restarts from zero; on update
steps kept weights take their optimizer step too, and only the slots of weights that
are inactive or grown are reset, not all momentum; n is rounded up, not down.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.checks import check_sparsity, check_stop, check_within
from sparsejax.counts import drop_count
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import counts_by_rule
from sparsejax.parameters import Prunable
from sparsejax.patterns import count_per_neuron, fan_in, top_k_per_neuron
from sparsejax.schedules import Schedule, cosine_prune_rate, every
from sparsejax.selection import top_k_mask
from sparsejax.topology import TopologyUpdate
from sparsejax.transform import Method, Snapshot, SparseTransformation, sparsify
from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


def srigl_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float,
    total_steps: int,
    update_interval: int,
    prune_rate: float = 0.3,
    ablation_threshold: float = 0.3,
    keep_neurons: Sequence[str] | None = None,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "erk",
    prune_rate_schedule: Schedule | None = None,
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains with a constant fan-in, dropping by magnitude and growing by gradient.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1). Fan-ins are whole numbers: what is
            realised is sparser by less than one weight a neuron.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1; 100 in the official code
            for CIFAR.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is exchanged.
        ablation_threshold: gamma in [0, 1], the share of its fan-in that must be
            salient for a neuron to stay; 0 ablates none.
        keep_neurons: Regexes; a layer whose path one of them is found in
            (`re.search`) is never ablated. Name the layer of the outputs here, as the
            official code does; () ablates anywhere. Not needed without ablation.
        begin_step: Updates start after this step.
        stop_step: T_end, the last step at which masks change and where the prune rate
            reaches 0; None for 75 % of the run.
        distribution: How the sparsity is shared out over layers: "erk", "er",
            "uniform", or a function; see `sparsejax.layer_counts`.
        prune_rate_schedule: Instead of the cosine, a function of the step.
        prunable: Which leaves get a mask; see `sparsejax.layer_rules`.
        masks: Masks to start from instead of random ones; the first update gives them
            the fan-in of `sparsity`.
        seed: Seed of the random masks.

    Returns:
        The wrapped optimizer; see `sparsejax.sparsify`.

    Raises:
        ValueError: If an argument is out of range, a regex matches no layer, or a layer
            is so sparse that its neurons would have no weight.

    Example:
        >>> import sparsejax as sj
        >>> tx = sj.srigl_transform(
        ...     optax.sgd(0.1), sparsity=0.75, total_steps=1000, update_interval=100,
        ...     keep_neurons=["head"])
        >>> params = {"body": jnp.ones((16, 16)), "head": jnp.ones((16, 4))}
        >>> params, state = sj.init_sparse(tx, params)
        >>> sj.get_masks(state)["body"].sum(axis=0).tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    check_sparsity("sparsity", sparsity)
    check_distribution(distribution)
    is_periodic = every(update_interval, begin_step)
    check_within("begin_step", begin_step, total_steps)
    check_within("update_interval", update_interval, total_steps)
    check_stop(stop_step)
    _check_ablation(ablation_threshold, keep_neurons)
    end = max(total_steps * 3 // 4, 1) if stop_step is None else stop_step
    cosine = cosine_prune_rate(prune_rate, end)
    rate_at = prune_rate_schedule or cosine

    def budgets_of(params: PyTree, rules: PyTree) -> PyTree:
        budgets = counts_by_rule(params, rules, sparsity, distribution)
        _check_fan_in(map_masked(lambda _, w: w.shape[-1], rules, params), budgets)
        return budgets

    def init(key: jax.Array, params: PyTree, rules: PyTree) -> PyTree:
        everything = map_masked(lambda _, w: jnp.ones(w.shape, bool), rules, params)
        _gammas(everything, ablation_threshold, keep_neurons)
        return map_masked(
            lambda mask, budget, score: top_k_per_neuron(
                score, budget // mask.shape[-1], mask
            ),
            everything,
            budgets_of(params, rules),
            scores.random(key, everything),
        )

    def update(now: Snapshot) -> TopologyUpdate:
        kept_and_grown = map_masked(
            lambda mask, w, g, budget, gamma: _update_layer(
                mask, w, g, budget, gamma, rate_at(now.step)
            ),
            now.masks,
            scores.magnitude(now.params, now.masks),
            scores.magnitude(now.grads, now.masks),
            budgets_of(now.params, now.rules),
            _gammas(now.masks, ablation_threshold, keep_neurons),
        )
        kept, grown = (
            map_masked(lambda mask, pair, i=i: pair[i], now.masks, kept_and_grown)
            for i in range(2)
        )
        return TopologyUpdate.of(kept, grown)

    method = Method(
        init=init,
        update=update,
        is_update_step=lambda step: is_periodic(step) & (step <= end),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _update_layer(
    mask: jax.Array, w: jax.Array, g: jax.Array, budget: int, gamma: float, rate: Any
) -> tuple[jax.Array, jax.Array]:
    """What one layer keeps and grows, in the steps of the paper."""
    if budget == mask.size:
        return mask, ~mask  # dense, even if it was given masks to start from
    count = jnp.sum(mask, dtype=jnp.int32)
    n = drop_count(rate, count)
    largest = top_k_mask(w, count - n, among=mask)

    active = jnp.ones(mask.shape[-1], bool)
    if gamma > 0:
        salient = count_per_neuron(largest | top_k_mask(g, n))
        least_salient = max(1, int(gamma * (budget // mask.shape[-1])))
        least_neurons = -(-budget // fan_in(mask.shape))
        active = (salient >= least_salient) | top_k_mask(salient, least_neurons)

    new_fan_in = budget // jnp.sum(active, dtype=jnp.int32)
    kept = top_k_per_neuron(w, new_fan_in, largest & active)
    missing = new_fan_in - count_per_neuron(kept)
    return kept, top_k_per_neuron(g, missing, ~kept & active)


def _gammas(masks: PyTree, gamma: float, keep_neurons: Sequence[str] | None) -> PyTree:
    """The ablation threshold of each layer: 0 where its neurons are kept."""
    paths = list(mask_leaves(masks))
    patterns = [re.compile(pattern) for pattern in keep_neurons or ()]
    for pattern in patterns:
        if not any(map(pattern.search, paths)):
            raise ValueError(
                f"keep_neurons: pattern {pattern.pattern!r} matches no masked layer; "
                f"the paths are {', '.join(map(repr, paths))}."
            )
    spared = [any(p.search(path) for p in patterns) for path in paths]
    return jax.tree.unflatten(
        jax.tree.structure(masks), [0.0 if spare else gamma for spare in spared]
    )


def _check_ablation(gamma: Any, keep_neurons: Any) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"ablation_threshold must be in [0, 1]; got {gamma}.")
    if gamma > 0 and keep_neurons is None:
        raise ValueError(
            "keep_neurons must name the layers whose neurons are never ablated, such "
            f"as the outputs', with ablation_threshold={gamma}; got None; give () to "
            "ablate anywhere."
        )
    if isinstance(keep_neurons, str):
        raise ValueError(
            f"keep_neurons must be a list of regexes; got {keep_neurons!r}."
        )
    for pattern in keep_neurons or ():
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(
                f"keep_neurons must hold regexes; got {pattern!r}: {error}."
            ) from None


def _check_fan_in(neurons: PyTree, budgets: PyTree) -> None:
    for (path, count), budget in zip(
        mask_leaves(neurons).items(), jax.tree.leaves(budgets)
    ):
        if budget < count:
            raise ValueError(
                f"sparsity must leave each neuron a weight; got {budget} active "
                f"weights for the {count} neurons at {path!r}; lower it, or leave the "
                "layer out with prunable."
            )
