"""The methods that experiments compare, by name.

STR (`sparsejax.soft_threshold`) is not among them. Its sparsity is an outcome of weight
decay and of the thresholds that it starts from: to compare it at a given sparsity, both
would have to be searched for each network, which no other method here is granted.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.training import before_training
from experiments.training.top_kast import top_kast_optimizer

# Names in reports, in the order of reports.
LABELS = {
    "dense": "Dense",
    "static": "Static",
    "set": "SET",
    "dsr": "DSR",
    "snfs": "SNFS",
    "mest": "MEST (EM)",
    "rigl": "RigL",
    "rigl_itop": "RigL-ITOP",
    "srigl": "SRigL",
    "top_kast": "Top-KAST",
    "acdc": "AC/DC",
    "gmp_layer": "GMP by layer",
    "gmp": "GMP",
    "granet_uniform": "GraNet-uniform",
    "granet": "GraNet (s_i=0)",
    "granet_st": "GraNet (s_i=0.5)",
}
# Methods that lay their budget out over layers again at each update: the sparsity must
# be known when the step is compiled, and masks to start from are of their own making.
NEED_SPARSITY = ("srigl", "top_kast")
# Methods that start from dense masks.
START_DENSE = ("dense", "acdc", "gmp", "gmp_layer", "granet", "granet_uniform")


def decayed_leaves(name: str, small: bool = True) -> Callable[[Any], Any]:
    """Chooses the leaves that the optimizer's weight decay is for.

    Args:
        name: A key of `LABELS`. Top-KAST's own penalty takes the place of the decay of
            the layers that it prunes.
        small: Whether leaves of fewer than two dimensions decay: biases, norms.

    Returns:
        A function params -> bools, for the `mask` of `optax.add_decayed_weights`.
    """
    large = name != "top_kast"
    return lambda params: jax.tree.map(lambda p: large if p.ndim > 1 else small, params)


def is_at_sparsity(name: str, wanted: Any, sparsity: Any) -> Any:
    """Tells whether masks are as sparse as they are to end: not on the way, not dense.

    Args:
        name: A key of `LABELS`.
        wanted: The sparsity asked for.
        sparsity: The sparsity of the masks.

    Returns:
        A bool, or an array of them; always True for "dense".
    """
    # Layers that round each by itself may be off by some weights.
    return (sparsity >= wanted - 1e-3) | (name == "dense")


def sparse_optimizer(
    name: str,
    inner: optax.GradientTransformation,
    config: ConfigDict,
    total_steps: int,
    *,
    sparsity: Any,
    seed: Any,
    masks: Any = None,
) -> sj.SparseTransformation:
    """Wraps the optimizer with a method.

    Args:
        name: A key of `LABELS`.
        inner: The optimizer to wrap.
        config: `update_interval_steps`, `pruning_share`, `weight_decay`, and what
            `experiments.configs.common.method_fields` has and explains.
        total_steps: The length of the run.
        sparsity: The sparsity to end at; may be traced where masks are given, but for
            the methods of `NEED_SPARSITY`.
        seed: Seed of random masks and random growth; may be traced.
        masks: Masks to start from, instead of those that the method makes; None for
            the methods of `NEED_SPARSITY`.

    Returns:
        The wrapped optimizer. For "dense" nothing is pruned, but the state has masks.

    Raises:
        ValueError: If there is no such method, or a length does not fit the run.
    """
    interval = config.update_interval_steps
    start: dict[str, Any] = {"masks": masks, "seed": seed}
    if masks is None:
        start["distribution"] = config.distribution
    drawn = start if masks is not None else start | {"sparsity": sparsity}
    periodic = {"total_steps": total_steps, "update_interval": interval}
    gradual = {
        "final_sparsity": sparsity,
        "end_step": round(config.pruning_share * total_steps),
        "update_interval": interval,
    }
    match name:
        case "dense":
            everything = start | {"distribution": "uniform"}
            if masks is None:
                everything |= {"sparsity": 0.0}
            return sj.static_transform(inner, **everything)
        case "static":
            return sj.static_transform(inner, **drawn)
        case "set":
            rate = config.prune_rate.set
            return sj.set_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "dsr":
            # Its authors stop at 95 % of the run.
            return sj.dsr_transform(
                inner,
                prune_rate=config.prune_rate.dsr,
                stop_step=round(0.95 * total_steps),
                **periodic,
                **drawn,
            )
        case "snfs":
            rate = config.prune_rate.snfs
            return sj.snfs_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "mest":
            rate = config.prune_rate.mest
            return sj.mest_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "rigl":
            rate = config.prune_rate.rigl
            return sj.rigl_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "rigl_itop":
            rate = config.prune_rate.rigl_itop
            return sj.itop_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "srigl":
            return sj.srigl_transform(
                inner,
                prune_rate=config.prune_rate.srigl,
                keep_neurons=[config.output_layer],
                **periodic,
                **drawn,
            )
        case "top_kast":
            return top_kast_optimizer(
                inner,
                sparsity=sparsity,
                backward_sparsity=max(
                    0.0, 1 - config.top_kast_backward * (1 - sparsity)
                ),
                update_interval=interval,
                exploration=config.weight_decay,
                distribution=config.distribution,
            )
        case "acdc":
            return sj.acdc_transform(
                inner,
                final_sparsity=sparsity,
                phases=[round(share * total_steps) for share in config.acdc_phases],
                total_steps=total_steps,
                masks=masks,
                seed=seed,
            )
        case "gmp" | "gmp_layer":
            scope = "layer" if name == "gmp_layer" else "global"
            return sj.gmp_transform(
                inner,
                scope=scope,
                masks=masks,
                seed=seed,
                total_steps=total_steps,
                **gradual,
            )
        case "granet" | "granet_uniform" | "granet_st":
            sparse_start = name == "granet_st"
            return sj.granet_transform(
                inner,
                initial_sparsity=(
                    config.granet_st_initial_sparsity if sparse_start else 0.0
                ),
                prune_rate=config.prune_rate.granet,
                scope="layer" if name == "granet_uniform" else "global",
                total_steps=total_steps,
                **gradual,
                **start,
            )
    known = ", ".join((*LABELS, *before_training.LABELS))
    raise ValueError(f"method must be one of {known}; got {name!r}.")
