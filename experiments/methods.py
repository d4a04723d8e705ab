"""The registry of methods: what experiments, tables and figures know of each.

A new method is a row of `METHODS`. STR (`sparsejax.soft_threshold`) is not among them:
its sparsity is an outcome of weight decay and of the thresholds that it starts from,
and both would have to be searched for at each sparsity, which no other method here is
granted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

import sparsejax as sj
from experiments.colors import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    YELLOW,
)
from experiments.top_kast import top_kast_optimizer

PyTree = Any


class Setup(NamedTuple):
    """What a method is made for: an optimizer, a configuration, a run."""

    inner: optax.GradientTransformation
    config: ConfigDict
    name: str
    total_steps: int
    sparsity: Any  # the sparsity to end at; may be traced where masks are given
    seed: Any  # may be traced
    masks: PyTree  # masks to start from; None for the method's own

    @property
    def start(self) -> dict[str, Any]:
        """The arguments of methods that make their first masks from a sparsity."""
        if self.masks is not None:
            return {"masks": self.masks, "seed": self.seed}
        distribution = {"distribution": self.config.distribution, "seed": self.seed}
        return distribution | self.prunable

    @property
    def drawn(self) -> dict[str, Any]:
        """Those of methods whose first masks have the sparsity to end at."""
        sparsity = {} if self.masks is not None else {"sparsity": self.sparsity}
        return self.start | sparsity

    @property
    def dense(self) -> dict[str, Any]:
        """Those of methods that start from dense masks."""
        prunable = {} if self.masks is not None else self.prunable
        return {"masks": self.masks, "seed": self.seed} | prunable

    @property
    def prunable(self) -> dict[str, Any]:
        """What the configuration says of the layers to prune, if it does."""
        chosen = self.config.get("prunable")
        return {} if chosen is None else {"prunable": chosen}

    @property
    def interval(self) -> int:
        """The update interval: the method's own, or the configuration's for all."""
        intervals: Mapping[str, int | None] = self.config.get("update_intervals", {})
        own = intervals.get(_RELATIVES.get(self.name, self.name))
        return self.config.update_interval_steps if own is None else own

    @property
    def periodic(self) -> dict[str, Any]:
        """The arguments of methods with a prune rate and an update interval."""
        return {
            "prune_rate": self.config.prune_rate[_RELATIVES.get(self.name, self.name)],
            "total_steps": self.total_steps,
            "update_interval": self.interval,
        }

    @property
    def gradual(self) -> dict[str, Any]:
        """The arguments of methods that prune gradually."""
        return {
            "final_sparsity": self.sparsity,
            "end_step": round(self.config.pruning_share * self.total_steps),
            "total_steps": self.total_steps,
            "update_interval": self.interval,
        }


# Methods that share the prune rate and the update interval of another.
_RELATIVES = {"granet_uniform": "granet", "granet_st": "granet", "gmp_layer": "gmp"}


def _static(setup: Setup) -> sj.SparseTransformation:
    return sj.static_transform(setup.inner, **setup.drawn)


def _dense(setup: Setup) -> sj.SparseTransformation:
    sparsity = {} if setup.masks is not None else {"sparsity": 0.0}
    everything = setup.start | {"distribution": "uniform"} | sparsity
    return sj.static_transform(setup.inner, **everything)


def _periodic(transform: Any) -> Callable[[Setup], sj.SparseTransformation]:
    return lambda setup: transform(setup.inner, **setup.periodic, **setup.drawn)


def _dsr(setup: Setup) -> sj.SparseTransformation:
    stop = round(0.95 * setup.total_steps)  # as its authors do
    options = setup.periodic | setup.drawn
    return sj.dsr_transform(setup.inner, stop_step=stop, **options)


def _srigl(setup: Setup) -> sj.SparseTransformation:
    options = setup.periodic | setup.drawn
    keep = [setup.config.output_layer] if setup.config.output_layer else []
    return sj.srigl_transform(setup.inner, keep_neurons=keep, **options)


def _top_kast(setup: Setup) -> sj.SparseTransformation:
    backward = setup.config.top_kast_backward * (1 - setup.sparsity)
    return top_kast_optimizer(
        setup.inner,
        sparsity=setup.sparsity,
        backward_sparsity=max(0.0, 1 - backward),
        update_interval=setup.interval,
        exploration=setup.config.weight_decay,
        distribution=setup.config.distribution,
        **setup.prunable,
    )


def _acdc(setup: Setup) -> sj.SparseTransformation:
    return sj.acdc_transform(
        setup.inner,
        final_sparsity=setup.sparsity,
        phases=[round(part * setup.total_steps) for part in setup.config.acdc_phases],
        total_steps=setup.total_steps,
        **setup.dense,
    )


def _gmp(scope: str) -> Callable[[Setup], sj.SparseTransformation]:
    def make(setup: Setup) -> sj.SparseTransformation:
        options = setup.gradual | setup.dense
        return sj.gmp_transform(setup.inner, scope=scope, **options)

    return make


def _granet(
    scope: str = "global", sparse_start: bool = False
) -> Callable[[Setup], sj.SparseTransformation]:
    def make(setup: Setup) -> sj.SparseTransformation:
        first = setup.config.granet_st_initial_sparsity if sparse_start else 0.0
        return sj.granet_transform(
            setup.inner,
            initial_sparsity=first,
            prune_rate=setup.config.prune_rate.granet,
            scope=scope,
            **setup.gradual,
            **setup.start,
        )

    return make


class Method(NamedTuple):
    """A row of the registry.

    Attributes:
        label: Its name in reports.
        color: Its color in figures, of the palette of Okabe and Ito; relatives share
            one.
        marker: Its marker in figures.
        make: Wraps an optimizer; those that prune before or after training train with
            static masks.
        when: "before", "during" or "after" training.
        first: The sparsity of its first masks: "dense", "final", the name of the
            configuration's field, or "own" where it makes them itself, of a sparsity
            that must be known when the step is compiled.
        flops: Its rule in `sparsejax.training_flops`.
    """

    label: str
    color: str
    marker: str
    make: Callable[[Setup], sj.SparseTransformation] = _static
    when: str = "during"
    first: str = "final"
    flops: str = "static"


# In the order of reports.
METHODS: Mapping[str, Method] = {
    "dense": Method("Dense", BLACK, "_", _dense, first="dense", flops="dense"),
    "static": Method("Static", GRAY, "v", when="before"),
    "set": Method("SET", ORANGE, "s", _periodic(sj.set_transform), flops="set"),
    "dsr": Method("DSR", ORANGE, "<", _dsr, flops="dsr"),
    "snfs": Method("SNFS", YELLOW, "p", _periodic(sj.snfs_transform), flops="snfs"),
    "mest": Method(
        "MEST (EM)", ORANGE, ">", _periodic(sj.mest_transform), flops="mest"
    ),
    "rigl": Method("RigL", SKY, "^", _periodic(sj.rigl_transform), flops="rigl"),
    "rigl_itop": Method(
        "RigL-ITOP", PINK, "P", _periodic(sj.itop_transform), flops="itop"
    ),
    "srigl": Method("SRigL", SKY, "d", _srigl, first="own", flops="srigl"),
    "top_kast": Method("Top-KAST", PINK, "*", _top_kast, first="own"),
    "acdc": Method("AC/DC", YELLOW, "h", _acdc, first="dense", flops="acdc"),
    "gmp_layer": Method(
        "GMP by layer", GREEN, "H", _gmp("layer"), first="dense", flops="gmp"
    ),
    "gmp": Method("GMP", GREEN, "D", _gmp("global"), first="dense", flops="gmp"),
    "granet_uniform": Method(
        "GraNet-uniform", RED, "8", _granet("layer"), first="dense", flops="granet"
    ),
    "granet": Method(
        "GraNet (s_i=0)", RED, "o", _granet(), first="dense", flops="granet"
    ),
    "granet_st": Method(
        "GraNet (s_i=0.5)",
        BLUE,
        "X",
        _granet(sparse_start=True),
        first="granet_st_initial_sparsity",
        flops="granet",
    ),
    "snip": Method("SNIP", BLUE, "s", when="before"),
    "grasp": Method("GraSP", PINK, "d", when="before"),
    "synflow": Method("SynFlow", ORANGE, "h", when="before"),
    "iter_snip": Method("Iter-SNIP", SKY, "<", when="before"),
    "force": Method("FORCE", GREEN, "P", when="before"),
    "drive": Method("DRIVE", RED, "p", when="before"),
    "one_shot": Method("One shot, fine-tuned", GRAY, "v", when="after"),
    "fine_tuning": Method("Rounds, fine-tuned", SKY, "^", when="after"),
    "rate_rewinding": Method("Rounds, rate rewound", BLUE, "s", when="after"),
    "lottery": Method("Lottery ticket", RED, "o", when="after"),
}


def names(*stages: str) -> list[str]:
    """Returns the methods that prune at these stages, in the order of reports."""
    return [name for name, method in METHODS.items() if method.when in stages]


def finds_masks(name: str) -> bool:
    """Whether a method computes its masks at the first weights, before training."""
    return METHODS[name].when == "before" and name != "static"


def first_sparsity(name: str, sparsity: float, config: ConfigDict) -> float | None:
    """Returns the sparsity of a method's first masks; None where it makes its own."""
    first = METHODS[name].first
    known = {"own": None, "dense": 0.0, "final": sparsity}
    return known[first] if first in known else config[first]


def decayed_leaves(name: str, small: bool = True) -> Callable[[Any], Any]:
    """Returns the mask of `optax.add_decayed_weights`; `small` for biases and norms."""
    # Top-KAST's own penalty takes the place of the decay of the layers that it prunes.
    large = name != "top_kast"
    return lambda params: jax.tree.map(lambda p: large if p.ndim > 1 else small, params)


def is_at_sparsity(name: str, wanted: Any, sparsity: Any) -> Any:
    """Whether masks are as sparse as they are to end: not on the way, not dense."""
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
    masks: PyTree = None,
) -> sj.SparseTransformation:
    """Wraps an optimizer with a method; see `Setup` for what may be traced."""
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"method must be one of {known}; got {name!r}.")
    setup = Setup(inner, config, name, total_steps, sparsity, seed, masks)
    return METHODS[name].make(setup)


def class_balanced_batch(
    images: np.ndarray, labels: np.ndarray, per_class: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws as many examples of each class, or all where a class has fewer."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(labels == label))[:per_class]
        for label in np.unique(labels)
    ]
    drawn = rng.permutation(np.concatenate(rows))
    return images[drawn], labels[drawn]


def masks_before_training(
    name: str,
    params: PyTree,
    sparsity: Any,
    *,
    loss_fn: Callable[..., jax.Array],
    batches: Callable[[int], Iterable[Any]],
    balanced: Callable[[], Iterable[Any]],
    dense_batches: Callable[[], Iterable[Any]],
    apply_fn: Callable[[PyTree, Any], Any],
    image_shape: tuple[int, ...],
    rounds: int | None,
    prunable: Any = None,
) -> PyTree:
    """Finds the masks of a network that is not trained yet, of exactly a sparsity.

    `batches` are those of a round, `balanced` GraSP's, `dense_batches` those of DRIVE's
    dense phase; `rounds` may be None for as many as a method's paper has.
    """
    one: dict[str, Any] = {"prunable": prunable}
    in_rounds = one if rounds is None else one | {"rounds": rounds}
    match name:
        case "snip":
            return sj.snip(loss_fn, params, batches(0), None, sparsity, **one)
        case "grasp":
            return sj.grasp(loss_fn, params, balanced(), None, sparsity, **one)
        case "synflow":
            image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
            return sj.synflow(apply_fn, params, [image], None, sparsity, **in_rounds)
        case "drive":
            in_rounds |= {"dense_batches": dense_batches()}
            return sj.drive(loss_fn, params, batches, None, sparsity, **in_rounds)
    in_rounds |= {"may_return": name == "force"}
    return sj.force(loss_fn, params, batches, None, sparsity, **in_rounds)


class RunFlops(NamedTuple):
    """FLOPs of a run on hardware that skips every zero; a multiply-add is two."""

    dense_forward: int  # of one example
    inference: float  # of the trained network, as a fraction of that
    training: float  # of the whole run, as a fraction of dense training's


def run_flops(
    name: str,
    forward: sj.ForwardFlops,
    history: Sequence[tuple[int, Mapping[str, Any]]],
    total_steps: int,
    update_steps: Iterable[int],
    backward: Mapping[str, Any] | None = None,
) -> RunFlops:
    """Adds up the FLOPs of a run from its (step, densities by path).

    `backward` has the densities of what Top-KAST trains, its B.

    Example:
        >>> forward = sj.ForwardFlops({"w": 1000}, other=0)
        >>> run_flops("rigl", forward, [(0, {"w": 0.5})], 10, [5])
        RunFlops(dense_forward=1000, inference=0.5, training=0.5166666666666667)
    """
    rule: Any = METHODS[name].flops
    if name == "top_kast":
        rule = sj.top_kast_accounting(sj.inference_flops(forward, backward or {}))
    updates = np.array(sorted(update_steps), np.int64)
    run = sj.training_flops(
        forward, history, total_steps, rule, lambda steps: np.isin(steps, updates)
    )
    inference = sj.inference_flops(forward, history[-1][1]) / forward.total
    return RunFlops(forward.total, float(inference), float(run.relative))


def changes(
    steps: Iterable[int], densities: Iterable[Mapping[str, Any]]
) -> list[tuple[int, Mapping[str, Any]]]:
    """Shortens a history to the steps at which densities change."""
    kept: list[tuple[int, Mapping[str, Any]]] = []
    for step, now in zip(steps, densities):
        if not kept or kept[-1][1] != now:
            kept.append((step, now))
    return kept
