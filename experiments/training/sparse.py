"""The methods that experiments compare, by name."""

from typing import Any

import optax
from ml_collections import ConfigDict

import sparsejax as sj

# Names in reports, in the order of reports.
LABELS = {
    "dense": "Dense",
    "static": "Static",
    "set": "SET",
    "rigl": "RigL",
    "rigl_itop": "RigL-ITOP",
    "gmp": "GMP",
    "granet": "GraNet (s_i=0)",
    "granet_st": "GraNet (s_i=0.5)",
}


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
        config: `update_interval_steps`, `pruning_share`, `prune_rate`, `distribution`,
            `granet_st_initial_sparsity`; `experiments.configs.common` explains them.
        total_steps: The length of the run.
        sparsity: The sparsity to end at; may be traced where masks are given.
        seed: Seed of random masks and random growth; may be traced.
        masks: Masks to start from, instead of those that the method makes.

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
        case "rigl":
            rate = config.prune_rate.rigl
            return sj.rigl_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "rigl_itop":
            rate = config.prune_rate.rigl_itop
            return sj.itop_transform(inner, prune_rate=rate, **periodic, **drawn)
        case "gmp":
            return sj.gmp_transform(inner, masks=masks, seed=seed, **gradual)
        case "granet" | "granet_st":
            sparse_start = name == "granet_st"
            return sj.granet_transform(
                inner,
                initial_sparsity=(
                    config.granet_st_initial_sparsity if sparse_start else 0.0
                ),
                prune_rate=config.prune_rate.granet,
                total_steps=total_steps,
                **gradual,
                **start,
            )
    raise ValueError(f"method must be one of {', '.join(LABELS)}; got {name!r}.")
