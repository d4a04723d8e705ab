"""SRigL: RigL with the same fan-in for every neuron, and without weak neurons.

Lasby et al., "Dynamic Sparse Training with Structured Sparsity", arXiv 2305.02299. From
random masks with k active weights in each neuron. At each update step up to T_end, in
each layer with K active weights, prune rate r(t) = r_0 (1 + cos(pi t / T_end)) / 2 and
n = ceil(r K):

1. salient are the K - n largest |w| of the layer and its n largest |dL/dw|;
2. a neuron with fewer than max(1, floor(gamma k)) salient weights is ablated, its mask
   emptied; at least so many neurons stay that the budget still fits in them;
3. those that stay have the new fan-in k' = floor(budget / active neurons);
4. of the K - n largest |w| of active neurons, each keeps at most its k' largest;
5. each active neuron grows weights of largest |dL/dw| up to k'.

The budget B is the layer's share of the sparsity, and k = floor(B / neurons). So a
layer holds exactly k' * active neurons weights: less than one a neuron below B. Neurons
are judged anew at each update: an ablated one comes back where its gradients are
salient. A neuron is an output of a kernel; see `LayerRule` for its axes.

A layer without sparsity is left alone, as in the official code. What differs from it:
|w| is ranked among active weights alone; step 4 keeps a neuron's largest |w|, not its
first; where the budget sets how many neurons stay, exactly the best are taken, not
their ties; on update steps weights that go on take their optimizer step too, and only
the optimizer state of weights that are inactive or new is reset, not all momentum; n is
rounded up, not down. A weight that is dropped and chosen again goes on with its value,
as there (read in the source).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax import scores
from sparsejax.chain import Element
from sparsejax.checks import check_fraction, check_range, check_step
from sparsejax.counts import drop_count
from sparsejax.distributions import Distribution, check_distribution
from sparsejax.masks import counts_by_rule
from sparsejax.methods.start import stop_at, until
from sparsejax.parameters import LayerRule, Prunable
from sparsejax.patterns import (
    by_neuron,
    count_per_neuron,
    from_neurons,
    top_k_per_neuron,
)
from sparsejax.schedules import Setting, as_schedule, cosine_prune_rate
from sparsejax.scores import Context
from sparsejax.selection import top_k_mask
from sparsejax.transform import Method, SparseTransformation, sparsify
from sparsejax.trees import map_masked, mask_leaves

PyTree = Any


def srigl_transform(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    total_steps: int,
    update_interval: int,
    prune_rate: Setting = 0.3,
    ablation_threshold: float = 0.3,
    keep_neurons: Sequence[str] | None = None,
    begin_step: int = 0,
    stop_step: int | None = None,
    distribution: Distribution = "erk",
    prunable: Prunable = None,
    masks: Any = None,
    seed: int = 0,
) -> SparseTransformation:
    """Trains with a constant fan-in, dropping by magnitude and growing by gradient.

    Updates are at `begin_step + i * update_interval` for i >= 1, up to `stop_step`.

    Args:
        inner: The optimizer to wrap.
        sparsity: Overall sparsity in [0, 1); leave it out where `prunable` fixes that
            of every layer. Fan-ins are whole numbers: what is realized is sparser by
            less than one weight a neuron.
        total_steps: The length of the run.
        update_interval: Steps between updates, at least 1; 100 in the official code
            for CIFAR.
        prune_rate: r_0 in (0, 1), the fraction of a layer that is dropped and grown, or
            a function of the step instead of the cosine.
        ablation_threshold: gamma in [0, 1], the share of its fan-in that must be
            salient for a neuron to stay; 0 ablates none.
        keep_neurons: Regexes; a layer whose path one of them is found in
            (`re.search`) is never ablated. Name the layer of the outputs here, as the
            official code does; () ablates anywhere. Not needed without ablation.
        begin_step: Updates start after this step.
        stop_step: T_end, the last step at which masks change and where the prune rate
            reaches 0; None for 75 % of the run.
        distribution: The sparsity's distribution over layers: "erk", "er",
            "uniform", or a function; see `sparsejax.layer_counts`.
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
    check_distribution(distribution)
    check_step("total_steps", total_steps, 1)
    _check_ablation(ablation_threshold, keep_neurons)
    T_end = stop_at(stop_step, total_steps * 3 // 4)
    r = as_schedule(
        "prune_rate",
        prune_rate,
        check_fraction,
        lambda r_0: cosine_prune_rate(r_0, T_end),
    )

    def budgets(params: PyTree, rules: PyTree) -> PyTree:
        found = counts_by_rule(params, rules, sparsity, distribution)
        map_masked(_check_fan_in, rules, _paths(rules), params, found)
        return found

    def first(key: jax.Array, params: PyTree, rules: PyTree) -> PyTree:
        _gammas(rules, ablation_threshold, keep_neurons)

        def at_layer(
            rule: LayerRule, w: jax.Array, score: jax.Array, B: int
        ) -> jax.Array:
            score = by_neuron(score, rule)
            k = B // score.shape[-1]
            mask = top_k_per_neuron(score, k, jnp.ones(score.shape, bool))
            return from_neurons(mask, rule, w.shape)

        everything = map_masked(lambda _, w: jnp.ones(w.shape, bool), rules, params)
        drawn = scores.random_scores(key, everything)
        return map_masked(at_layer, rules, params, drawn, budgets(params, rules))

    def update(ctx: Context) -> PyTree:
        def at_layer(
            rule: LayerRule, mask: Any, w: Any, g: Any, B: int, gamma: float
        ) -> jax.Array:
            known = mask, scores.absolute(w), scores.absolute(g)
            mask_of, w_of, g_of = (by_neuron(leaf, rule) for leaf in known)
            after = _update(mask_of, w_of, g_of, B, gamma, r(ctx.step))
            return from_neurons(after, rule, mask.shape)

        return map_masked(
            at_layer,
            ctx.rules,
            ctx.masks,
            ctx.params,
            ctx.grads,
            budgets(ctx.params, ctx.rules),
            _gammas(ctx.rules, ablation_threshold, keep_neurons),
        )

    method = Method(
        first=first,
        update=Element(update, settings=(r,)),
        when=until(update_interval, begin_step, total_steps, T_end),
    )
    return sparsify(inner, method, prunable=prunable, masks=masks, seed=seed)


def _update(
    mask: jax.Array, w: jax.Array, g: jax.Array, B: int, gamma: float, rate: Any
) -> jax.Array:
    """The new mask [fan-in, neurons] of one layer, in the steps of the paper."""
    fan_in, neurons = mask.shape
    if mask.size == B:
        return jnp.ones_like(mask)  # dense, even if it was given masks to start from
    K = jnp.sum(mask, dtype=jnp.int32)
    n = drop_count(rate, K)

    active = jnp.ones(neurons, bool)
    if gamma > 0:
        salient = top_k_mask(w, K - n, among=mask) | top_k_mask(g, n)  # 1.
        salient_of = count_per_neuron(salient)
        enough = salient_of >= max(1, int(gamma * (B // neurons)))
        active = enough | top_k_mask(salient_of, -(-B // fan_in))  # 2.

    new_fan_in = B // jnp.sum(active, dtype=jnp.int32)  # 3.
    largest = top_k_mask(w, K - n, among=mask & active[None])
    kept = top_k_per_neuron(w, new_fan_in, largest)  # 4.
    missing = new_fan_in - count_per_neuron(kept)
    return kept | top_k_per_neuron(g, missing, ~kept & active[None])  # 5.


def _paths(rules: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(rules), list(mask_leaves(rules)))


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
    check_range("ablation_threshold", gamma, lambda x: 0 <= x <= 1, "in [0, 1]")
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


def _check_fan_in(rule: LayerRule, path: str, leaf: Any, budget: int) -> None:
    neurons = jax.eval_shape(lambda x: by_neuron(x, rule), leaf).shape[-1]
    if budget < neurons:
        raise ValueError(
            f"sparsity must leave each neuron a weight; got {budget} active weights "
            f"for the {neurons} neurons at {path!r}; lower it, or leave the layer out "
            "with prunable."
        )
