"""The methods that experiments compare, by name."""

import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.comparison.replicas import MakeTransform, Replica

# Names in reports, in the order of reports.
LABELS = {
    "dense": "Dense",
    "static": "Static",
    "set": "SET",
    "rigl": "RigL",
    "gmp": "GMP",
    "granet": "GraNet (s_i=0)",
    "granet_st": "GraNet (s_i=0.5)",
}


def first_sparsity(name: str, sparsity: float, config: ConfigDict) -> float:
    """Gives the sparsity of a method's first masks.

    Args:
        name: A key of `LABELS`.
        sparsity: The sparsity that the method is to end at.
        config: An experiment's configuration.

    Returns:
        The sparsity: 0 for methods that start dense.
    """
    if name in ("dense", "gmp", "granet"):
        return 0.0
    return config.granet_st_initial_sparsity if name == "granet_st" else sparsity


def make_transform(
    name: str,
    inner: optax.GradientTransformation,
    config: ConfigDict,
    total_steps: int,
) -> MakeTransform:
    """Wraps the optimizer with a method.

    Args:
        name: A key of `LABELS`.
        inner: The optimizer to wrap.
        config: An experiment's configuration; `experiments/configs/digits.py` says what
            the fields mean.
        total_steps: The length of the run.

    Returns:
        A function replica -> wrapped optimizer. The replica may be traced: its numbers
        need not be known when the function is compiled.
    """
    interval = config.update_interval_steps
    end_step = round(config.pruning_share * total_steps)

    def transform(replica: Replica) -> optax.GradientTransformationExtraArgs:
        seed: int = replica.seed  # type: ignore[assignment]
        final: float = replica.sparsity  # type: ignore[assignment]
        match name:
            case "dense" | "static":
                return sj.static_transform(inner, masks=replica.masks)
            case "set":
                return sj.set_transform(
                    inner,
                    masks=replica.masks,
                    total_steps=total_steps,
                    update_interval=interval,
                    prune_rate=config.prune_rate.set,
                    seed=seed,
                )
            case "rigl":
                return sj.rigl_transform(
                    inner,
                    masks=replica.masks,
                    total_steps=total_steps,
                    update_interval=interval,
                    prune_rate=config.prune_rate.rigl,
                )
            case "gmp":
                return sj.gmp_transform(
                    inner,
                    masks=replica.masks,
                    final_sparsity=final,
                    end_step=end_step,
                    update_interval=interval,
                )
            case "granet" | "granet_st":
                return sj.granet_transform(
                    inner,
                    masks=replica.masks,
                    initial_sparsity=first_sparsity(name, 0.0, config),
                    final_sparsity=final,
                    total_steps=total_steps,
                    end_step=end_step,
                    update_interval=interval,
                    prune_rate=config.prune_rate.granet,
                )
        raise ValueError(f"method must be one of {list(LABELS)}; got {name!r}.")

    return transform
