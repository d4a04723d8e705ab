"""Bad input is refused in one sentence: the argument, the value, what is allowed."""

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax as sj

NAN = float("nan")
LEFT = optax.MaskedNode()
PARAMS = {"b": jnp.ones(5), "v": jnp.ones((3, 3)), "w": jnp.ones((4, 5))}
MASKS = sj.dense_masks(PARAMS)
COUNTS = {"b": LEFT, "v": 2, "w": 3}
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
THREE = jnp.arange(3.0)
BY = sj.scores.magnitude
DICTS_ALONE = optax.GradientTransformation(
    lambda params: {name: jnp.zeros_like(leaf) for name, leaf in params.items()},
    lambda updates, state, params=None: (updates, state),
)


def granet(**settings):
    known = {"total_steps": 100, "end_step": 50, "update_interval": 5}
    return sj.granet_transform(SGD, **known | settings)


def gmp(**settings):
    known = {"final_sparsity": 0.9, "end_step": 50, "update_interval": 5}
    return sj.gmp_transform(SGD, **known | settings)


def rigl(inner=SGD, **settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.rigl_transform(inner, **known | settings)


def set_(**settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.set_transform(SGD, **known | settings)


def itop(**settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.itop_transform(SGD, **known | settings)


def snfs(**settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.snfs_transform(SGD, **known | settings)


def dsr(**settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.dsr_transform(SGD, **known | settings)


def mest(**settings):
    known = {"sparsity": 0.9, "total_steps": 100, "update_interval": 5}
    return sj.mest_transform(SGD, **known | settings)


def static(**settings):
    return sj.static_transform(SGD, **{"sparsity": 0.5} | settings)


def acdc(**settings):
    known = {"final_sparsity": 0.9, "phases": [10, 20, 30]}
    return sj.acdc_transform(SGD, **known | settings)


def acdc_phases(total_steps=100, **settings):
    known = {"warm_up_steps": 10, "phase_steps": 5}
    known |= {"last_dense_steps": 10, "last_sparse_steps": 15}
    return sj.acdc_phases(total_steps, **known | settings)


def start(tx, params=PARAMS):
    return tx.init(params)


def step(tx=None, **arguments):
    tx = tx or static()
    params, state = sj.init_sparse(tx, PARAMS)
    arguments = {"updates": PARAMS, "params": params} | arguments
    return tx.update(state=state, **arguments)


def random(sparsity=None, distribution="erk", prunable=None, **arguments):
    return sj.random_masks(KEY, PARAMS, sparsity, distribution, prunable, **arguments)


def without(tree, name):
    return {key: leaf for key, leaf in tree.items() if key != name}


RANGE = r"must be in \[0, 1\), the fraction of prunable weights that are zero; got "
OPEN = r"must be in \(0, 1\), both excluded; got "
NAMES = "must be one of 'erk', 'er', 'uniform'; got "
SCOPES = "must be one of 'global', 'layer'; got "
EXCHANGING = (rigl, set_, itop, snfs, dsr, mest)
AT_LEAST_1 = "must be an integer of at least 1; got "

TABLE = {
    "sparsity": [
        (lambda: random(1.0), "^sparsity " + RANGE + "1.0"),
        (lambda: random(-0.1), "^sparsity " + RANGE + "-0.1"),
        (lambda: random(90), "^sparsity " + RANGE + "90"),
        (lambda: random(NAN), "^sparsity " + RANGE + "nan"),
        (lambda: rigl(sparsity=1.0), "^sparsity " + RANGE + "1.0"),
        (lambda: set_(sparsity=NAN), "^sparsity " + RANGE + "nan"),
        (lambda: static(sparsity=-0.5), "^sparsity " + RANGE + "-0.5"),
        (lambda: gmp(final_sparsity=90), "^final_sparsity " + RANGE + "90"),
        (lambda: granet(final_sparsity=1.0), "^final_sparsity " + RANGE + "1.0"),
        (lambda: granet(initial_sparsity=-0.1), "^initial_sparsity " + RANGE + "-0.1"),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, sparsity=1.0),
            "^sparsity " + RANGE + "1.0",
        ),
        (lambda: sj.layer_counts({"a": (9, 9)}, 90), "^sparsity " + RANGE + "90"),
        (
            lambda: sj.layer_counts({"a": (9, 9)}, 0.5, fixed={"a": 1.0}),
            "^fixed at 'a' " + RANGE + "1.0",
        ),
        (
            lambda: sj.layer_counts({"a": (9, 9)}, 0.5, fixed={"z": 0.5}),
            "^fixed must be one of 'a'; got 'z'",
        ),
        (
            lambda: jax.jit(random)(0.5),
            "^sparsity must be known when masks are laid out .* pass counts",
        ),
    ],
    "phases": [
        (lambda: acdc(final_sparsity=1.0), "^final_sparsity " + RANGE + "1.0"),
        (lambda: acdc(scope="network"), "^scope " + SCOPES + "'network'"),
        (lambda: acdc(phases=[]), r"^phases must be the first steps .* got \[\]"),
        (lambda: acdc(phases=10), "^phases must be the first steps .* got 10"),
        (lambda: acdc(phases="10"), "^phases must be the first steps .* got '10'"),
        (lambda: acdc(phases=[0, 5]), "^phases " + AT_LEAST_1 + "0"),
        (lambda: acdc(phases=[2.5]), "^phases " + AT_LEAST_1 + "2.5"),
        (
            lambda: acdc(phases=[5, 5]),
            "^phases must be an integer of at least 6, each after the last; got 5",
        ),
        (lambda: acdc_phases(phase_steps=0), "^phase_steps " + AT_LEAST_1 + "0"),
        (lambda: acdc_phases(100.0), "^total_steps " + AT_LEAST_1 + "100.0"),
        (
            lambda: acdc_phases(95),
            "^total_steps must leave room for an odd number of phases of "
            "phase_steps=5 .* got total_steps=95, which leaves 60 steps",
        ),
        (lambda: acdc_phases(30), "^total_steps must leave .* which leaves -5 steps"),
        (lambda: acdc_phases(101), "^total_steps must leave .* which leaves 66 steps"),
    ],
    "initial above final": [
        (
            lambda: granet(initial_sparsity=0.95),
            "^initial_sparsity must not be above final_sparsity; got 0.95 and 0.9",
        ),
        (
            lambda: gmp(initial_sparsity=0.95),
            "^initial_sparsity must not be above final_sparsity; got 0.95 and 0.9",
        ),
        (
            lambda: sj.linear_sparsity(0.5, 0.2, 0, 10),
            "^initial_sparsity must not be above final_sparsity; got 0.5 and 0.2",
        ),
    ],
    "steps": [
        (lambda: granet(begin_step=60), "^end_step .* 61, after begin_step=60; got 50"),
        (lambda: gmp(begin_step=50), "^end_step .* 51, after begin_step=50; got 50"),
        (lambda: sj.every(5, 10, 10), "^end_step .* 11, after begin_step=10; got 10"),
        (lambda: granet(end_step=100), "^end_step .* below total_steps=100.* got 100"),
        (lambda: granet(end_step=50.5), "^end_step must be an integer .* got 50.5"),
        (lambda: granet(begin_step=-1), "^begin_step .* integer of at least 0; got -1"),
        (lambda: rigl(begin_step=0.5), "^begin_step .* integer of at least 0; got 0.5"),
        (lambda: granet(total_steps=100.0), "^total_steps " + AT_LEAST_1 + "100.0"),
        (lambda: rigl(total_steps=100.5), "^total_steps " + AT_LEAST_1 + "100.5"),
        (lambda: set_(total_steps=0), "^total_steps " + AT_LEAST_1 + "0"),
        (lambda: sj.cosine_prune_rate(0.5, 0), "^total_steps " + AT_LEAST_1 + "0"),
        (lambda: sj.linear_prune_rate(0.5, 0.5), "^total_steps " + AT_LEAST_1 + "0.5"),
        *(
            (lambda make=make: make(stop_step=-1), "^stop_step " + AT_LEAST_1 + "-1")
            for make in EXCHANGING
        ),
        (lambda: rigl(stop_step=0), "^stop_step " + AT_LEAST_1 + "0"),
        *(
            (lambda make=make: make(begin_step=100), "^begin_step .* total_steps=100")
            for make in EXCHANGING
        ),
        (
            lambda: gmp(total_steps=50),
            "^end_step must be below total_steps=50, .* got 50",
        ),
        (
            lambda: acdc(total_steps=30),
            "^phases must be below total_steps=30, .* got 30",
        ),
        (lambda: granet(stop_step=5.5), "^stop_step " + AT_LEAST_1 + "5.5"),
    ],
    "interval": [
        *(
            (lambda make=make, bad=bad: make(update_interval=bad), message)
            for make in (granet, gmp, *EXCHANGING)
            for bad, message in [
                (0, "^update_interval " + AT_LEAST_1 + "0"),
                (True, "^update_interval " + AT_LEAST_1 + "True"),
                (5.0, "^update_interval " + AT_LEAST_1 + "5.0"),
                ("5", "^update_interval " + AT_LEAST_1 + "'5'"),
            ]
        ),
        *(
            (
                lambda make=make: make(update_interval=100),
                "^update_interval .* below total_steps=100",
            )
            for make in (granet, *EXCHANGING)
        ),
        (lambda: sj.every(-3), "^update_interval " + AT_LEAST_1 + "-3"),
    ],
    "prune rate": [
        *(
            (
                lambda make=make, bad=bad: make(prune_rate=bad),
                f"^prune_rate {OPEN}{bad}",
            )
            for make in (granet, *EXCHANGING)
            for bad in (0.0, 1.0, -0.1, 1.5, NAN)
        ),
        (lambda: sj.constant_prune_rate(1), "^prune_rate " + OPEN + "1"),
        (
            lambda: sj.cosine_prune_rate(0.5, 100, 1.0),
            r"^final_prune_rate must be in \[0, 1\); got 1.0",
        ),
    ],
    "elements": [
        *(
            (
                lambda make=make, bad=bad: make(grow=bad),
                f"^grow must be a score, .* or a function of a Context; got {bad!r}",
            )
            for make in (granet, rigl, itop)
            for bad in ("gradient", None)
        ),
        (lambda: sj.grow(3), "^score must be a score, .* got 3"),
        (lambda: sj.prune("x", to=0.5), "^score must be a score, .* got 'x'"),
        (
            lambda: sj.drop_and_grow(drop=3, fraction=0.5),
            "^drop must be a score, .* got 3",
        ),
        (lambda: sj.chain(3), "^a chain must hold elements, .* got 3"),
        (
            lambda: sj.chain(sj.scores.magnitude, None),
            "^a chain must hold elements, .* got ",
        ),
        (
            lambda: sj.prune(BY),
            "^prune needs exactly one of to, fraction and keep; got to=None",
        ),
        (
            lambda: sj.prune(BY, to=0.5, fraction=0.5),
            "^prune needs exactly one of to, fraction and keep; got to=0.5",
        ),
        (lambda: sj.prune(BY, to=0.5, scope="all"), f"^scope {SCOPES}'all'"),
        (lambda: sj.prune(BY, to=1.0), "^to " + RANGE + "1.0"),
        (lambda: sj.drop(BY, fraction=1.0), "^fraction " + OPEN + "1.0"),
        (lambda: sj.drop_and_grow(fraction=0.0), "^fraction " + OPEN + "0.0"),
        (lambda: sj.random_start(1.5), "^sparsity " + RANGE + "1.5"),
        (lambda: sj.random_start(0.5, "ERK"), f"^distribution {NAMES}'ERK'"),
        *(
            (
                lambda make=make, name=name, bad=bad: make(**{name: bad}),
                f"^{name} must be a number, or a function of the step .*{why}",
            )
            for make, name in (
                (granet, "final_sparsity"),
                (gmp, "final_sparsity"),
                *((make, "prune_rate") for make in (granet, rigl, itop, snfs, set_)),
            )
            for bad, why in (
                (lambda step: jnp.ones(2), r"it returns .*\(2,\)"),
                (lambda step: float(step), "it raises: "),
                (lambda: 0.5, "it raises: "),
            )
        ),
        *(
            (
                lambda bad=bad: sj.scores.mean_gradient(bad),
                f"^steps {AT_LEAST_1}{bad}",
            )
            for bad in (0, -1, 1.5)
        ),
        *(
            (
                lambda bad=bad: sj.scores.momentum(bad),
                rf"^momentum must be in \[0, 1\); got {bad}",
            )
            for bad in (1.0, -0.1, NAN)
        ),
        *(
            (
                lambda bad=bad: snfs(momentum=bad),
                rf"^momentum must be in \[0, 1\); got {bad}",
            )
            for bad in (1.0, -0.1, NAN)
        ),
        *(
            (
                lambda bad=bad: dsr(initial_threshold=bad),
                f"^initial_threshold must be a finite number above 0; got {bad}",
            )
            for bad in (0.0, -1.0, NAN, float("inf"))
        ),
        *(
            (
                lambda bad=bad: mest(gradient_weight=bad),
                f"^gradient_weight must be a finite number of at least 0; got {bad}",
            )
            for bad in (-0.1, NAN, float("inf"))
        ),
    ],
    "distribution": [
        *(
            (lambda make=make: make(distribution="ERK"), f"^distribution {NAMES}'ERK'")
            for make in (granet, static, *EXCHANGING)
        ),
        (lambda: random(0.5, None), f"^distribution {NAMES}None"),
        (
            lambda: random(0.5, lambda shapes, density: {"v": 0.0, "w": 2.0}),
            r"^distribution must give each layer a density in \[0, 1\].* got .*2.0",
        ),
        (
            lambda: random(0.5, lambda shapes, density: {"w": 0.5}),
            r"^distribution must give each layer a density in \[0, 1\]",
        ),
        (
            lambda: random(0.5, sj.uniform_except(["conv"])),
            "^dense must be one of 'v', 'w'; got 'conv'",
        ),
        (
            lambda: random(0.5, sj.uniform_except(["v", "w"])),
            "^distribution must give each layer .* keep 14 weights for sparsity=0.5",
        ),
        (
            lambda: random(0.9, sj.uniform_except(["w"])),
            "^distribution must give each layer .* keep 3 weights for sparsity=0.9",
        ),
    ],
    "scope": [
        (lambda: gmp(scope="local"), f"^scope {SCOPES}'local'"),
        (lambda: granet(scope="uniform"), f"^scope {SCOPES}'uniform'"),
        (lambda: sj.count_active(MASKS, "local"), f"^scope {SCOPES}'local'"),
        (lambda: sj.density(MASKS, "local"), f"^scope {SCOPES}'local'"),
        (lambda: sj.top_k_mask(THREE, 1, scope="layers"), f"^scope {SCOPES}'layers'"),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, keep=1, scope=None),
            f"^scope {SCOPES}None",
        ),
        (
            lambda: sj.regrow_gradient(PARAMS, MASKS, 1, scope="x"),
            f"^scope {SCOPES}'x'",
        ),
    ],
    "masks that do not fit": [
        (
            lambda: sj.apply_masks(PARAMS, MASKS | {"w": jnp.ones((5, 4), bool)}),
            r"^masks do not fit params at 'w': .* shape \(4, 5\) is needed; "
            r"got bool of shape \(5, 4\)",
        ),
        (
            lambda: sj.apply_masks(PARAMS, MASKS | {"w": jnp.ones((4, 5))}),
            "^masks do not fit params at 'w': a bool array .* got float32 of shape",
        ),
        (
            lambda: sj.apply_masks(PARAMS, MASKS | {"w": True}),
            "^masks do not fit params at 'w': a bool array .* got bool of shape None",
        ),
        (
            lambda: sj.apply_masks(PARAMS, without(MASKS, "v")),
            "^masks do not fit params: masks have nothing at 'v'",
        ),
        (
            lambda: sj.apply_masks(PARAMS, 3),
            "^masks do not fit params: masks have nothing at 'b'",
        ),
        (
            lambda: sj.apply_masks(PARAMS, MASKS | {"x": MASKS["w"]}),
            "^masks do not fit params: params have nothing at 'x'",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, without(MASKS, "v"), keep=1),
            "^masks do not fit params: masks have nothing at 'v'",
        ),
        (
            lambda: sj.regrow_gradient(without(PARAMS, "v"), MASKS, COUNTS),
            "^masks do not fit grads: grads have nothing at 'v'",
        ),
        (
            lambda: sj.prune_by_score(without(MASKS, "v"), MASKS, keep=1),
            "^masks do not fit scores: scores have nothing at 'v'",
        ),
        (
            lambda: sj.regrow_by_score(PARAMS | {"w": THREE}, MASKS, COUNTS),
            "^masks do not fit scores at 'w'",
        ),
        (
            lambda: sj.union(MASKS, without(MASKS, "v")),
            "^masks do not fit the other masks: the other masks have nothing at 'v'",
        ),
        (
            lambda: sj.jaccard(MASKS, MASKS | {"w": MASKS["v"]}),
            "^masks do not fit the other masks at 'w'",
        ),
        (
            lambda: sj.summary(PARAMS, without(MASKS, "w")),
            "^masks do not fit params: masks have nothing at 'w'",
        ),
        (
            lambda: start(static(sparsity=None, masks=without(MASKS, "w"))),
            "^masks do not fit params: masks have nothing at 'w'",
        ),
        (
            lambda: start(static(sparsity=None, masks=MASKS, prunable=[("w", False)])),
            r"^masks and prunable must mean the same leaves; got masks for "
            r"\['v', 'w'\] and prunable for \['v'\]",
        ),
        (
            lambda: sj.count_active({"a": LEFT}),
            "^masks must hold at least one mask; got none",
        ),
        (
            lambda: start(static(sparsity=None, masks=dict.fromkeys(PARAMS, LEFT))),
            "^masks must hold at least one mask; got none",
        ),
    ],
    "parameters": [
        (
            lambda: sj.dense_masks({"w": jnp.ones((2, 2), jnp.int32)}, [("w", True)]),
            "^params at 'w' must hold floats to be prunable; got int32; exclude",
        ),
        (lambda: sj.dense_masks({}), r"^params hold nothing to prune.* paths are \[\]"),
        (lambda: start(granet(), {}), "^params hold nothing to prune"),
        (
            lambda: sj.dense_masks(PARAMS, lambda path, leaf: False),
            r"^params hold nothing to prune.* paths are \['b', 'v', 'w'\]",
        ),
        (
            lambda: start(rigl(prunable=[("", False)])),
            "^params hold nothing to prune.* prunable excludes them",
        ),
        (
            lambda: sj.dense_masks(PARAMS, [("w", True), ("conv", False)]),
            "^prunable: pattern 'conv' matches no parameter; .* are 'b', 'v', 'w'",
        ),
        (
            lambda: sj.dense_masks(PARAMS, [("w", "x")]),
            "^prunable: the setting of pattern 'w' must be .* got 'x'",
        ),
        (
            lambda: sj.dense_masks(PARAMS, [("w", 1.5)]),
            "^prunable: the sparsity of pattern 'w' " + RANGE + "1.5",
        ),
        (
            lambda: sj.dense_masks(PARAMS, [("w", sj.LayerRule(sparsity=-1.0))]),
            "^prunable: the sparsity of pattern 'w' " + RANGE + "-1.0",
        ),
        (lambda: sj.dense_masks(PARAMS, "w"), "^prunable must be None, .* got 'w'"),
        (lambda: sj.dense_masks(PARAMS, 3), "^prunable must be None, .* got 3"),
        (
            lambda: sj.dense_masks(PARAMS, [("b", sj.LayerRule(stacked=True))]),
            r"^prunable: 'b' of shape \(5,\) cannot be stacked layers",
        ),
    ],
    "update": [
        (lambda: step(params=None), r"^params must be given to update, .* got None"),
        (
            lambda: step(updates=without(PARAMS, "w")),
            "^masks do not fit grads: grads have nothing at 'w'",
        ),
        (
            lambda: step(params=PARAMS | {"w": jnp.ones((2, 2))}),
            "^masks do not fit params at 'w'",
        ),
        (
            lambda: sj.get_masks(SGD.init(PARAMS)),
            "^opt_state must hold the state of sparsify .* got tuple without any",
        ),
        (lambda: sj.init_sparse(SGD, PARAMS), "^opt_state must hold the state"),
        (lambda: sj.init_sparse(PARAMS, PARAMS), "^tx must be an optax .* got dict"),
        (
            lambda: sj.static_transform(optax.sgd, sparsity=0.5),
            "^inner must be an optax transformation, such as .* got <function sgd",
        ),
        (lambda: static(seed=0.5), "^seed must be an integer; got 0.5"),
        (lambda: static(seed=True), "^seed must be an integer; got True"),
        (
            lambda: static().update(PARAMS, SGD.init(PARAMS), PARAMS),
            "^state must be what this transformation's init returned; got tuple",
        ),
        (
            lambda: rigl().update(PARAMS, start(static()), PARAMS),
            "^state must be what .* got SparsifyState of another method",
        ),
        (
            lambda: start(rigl(inner=DICTS_ALONE)),
            "^inner must keep its state in trees like the parameters, .* fails: ",
        ),
    ],
    "out of reach": [
        (
            lambda: random(0.97),
            '^distribution="erk" cannot reach sparsity=0.97: it leaves 1 active '
            "weights for 2 layers, less than one a layer; lower the sparsity",
        ),
        (lambda: random(0.97, "er"), '^distribution="er" cannot reach sparsity=0.97'),
        (
            lambda: random(0.9, prunable=[("w", 0.0)]),
            "^sparsity=0.9 cannot be reached: .* hold 20 active weights, which asks "
            "for -17 of the 9 weights",
        ),
        (
            lambda: random(0.1, prunable=[("w", 0.9)]),
            "^sparsity=0.1 cannot be reached: .* asks for 24 of the 9 weights",
        ),
        (
            lambda: random(0.1, prunable=[("w", 0.9), ("v", 0.5)]),
            "^sparsity=0.1 cannot be reached: .* of the 0 weights",
        ),
        (
            lambda: step(gmp(prunable=[("w", 0.0)])),
            "^sparsity=0.9 cannot be reached: .* hold 20 active weights, which asks "
            "for -17 of the 9 weights",
        ),
    ],
    "neither or both": [
        *(
            (
                lambda make=make: make(sparsity=None),
                "^exactly one of sparsity and masks .* neither",
            )
            for make in EXCHANGING
        ),
        (lambda: mest(masks=MASKS), "^exactly one of sparsity and masks .* both"),
        (lambda: static(masks=MASKS), "^exactly one of sparsity and masks .* both"),
        (random, "needs exactly one of sparsity and counts, or .* got sparsity=None"),
        (
            lambda: random(0.5, counts=COUNTS),
            "needs exactly one of sparsity and counts, or .* got sparsity=0.5",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS),
            "^prune needs exactly one of sparsity, fraction and keep; got ",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, sparsity=0.5, keep=3),
            "^prune needs exactly one of .* got sparsity=0.5, fraction=None, keep=3",
        ),
    ],
    "counts": [
        (lambda: random(counts={"w": 1}), "^counts must be a tree like masks .* got"),
        (lambda: random(counts=3), "^counts must be a tree like masks .* got 3"),
        (
            lambda: random(counts=COUNTS | {"w": 21}),
            "^counts at 'w' must be one integer between 0 and .*, 20; got 21",
        ),
        (
            lambda: random(counts=COUNTS | {"v": 2.5}),
            "^counts at 'v' must be one integer between 0 and .*, 9; got 2.5",
        ),
        (
            lambda: sj.regrow_gradient(PARAMS, MASKS, 3),
            "^counts must be a tree like masks .* got 3",
        ),
        (
            lambda: sj.regrow_random(KEY, MASKS, {"w": 1}, scope="global"),
            '^counts must be .* one integer with scope="global"; got',
        ),
        (
            lambda: sj.regrow_random(KEY, MASKS, -1, scope="global"),
            "^counts must be one integer between 0 and .*, 29; got -1",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, keep=3, scope="layer"),
            "^keep must be a tree like masks .* got 3",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, keep=COUNTS),
            '^keep must be .* one integer with scope="global"; got',
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, keep=30),
            "^keep must be one integer between 0 and .*, 29; got 30",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, keep=3.0),
            "^keep must be one integer between 0 and .*, 29; got 3.0",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, fraction=1.5),
            r"^fraction must be in \[0, 1\]; got 1.5",
        ),
        (
            lambda: sj.prune_magnitude(PARAMS, MASKS, fraction=NAN),
            r"^fraction must be in \[0, 1\]; got nan",
        ),
    ],
    "selection": [
        (lambda: sj.kth_largest(THREE, 0), "^k must be .* between 1 and .*, 3; got 0"),
        (lambda: sj.kth_largest(THREE, 4), "^k must be .* between 1 and .*, 3; got 4"),
        (lambda: sj.top_k_mask(THREE, -1), "^k must be .* between 0 and .*; got -1"),
        (lambda: sj.top_k_mask(THREE, 4), "^k must be .* between 0 and .*; got 4"),
        (lambda: sj.top_k_mask(THREE, 1.5), "^k must be one integer .* got 1.5"),
        (lambda: sj.top_k_mask(THREE, True), "^k must be one integer .* got True"),
        (lambda: jax.jit(sj.top_k_mask)(THREE, 1.5), "^k must be one integer .* got"),
        (lambda: sj.kth_largest(THREE, jnp.arange(2)), "^k must be one integer .* got"),
        (
            lambda: sj.top_k_mask([THREE, THREE], jnp.arange(2), scope="layer"),
            "^k must be one integer .* got",
        ),
        (
            lambda: sj.top_k_mask({"a": THREE}, {"a": 4}, scope="layer"),
            "^k must be one integer between 0 and .*, 3; got 4",
        ),
        (
            lambda: sj.top_k_mask({"a": THREE}, {"b": 1}, scope="layer"),
            "^k must be a tree like scores",
        ),
        (
            lambda: sj.top_k_mask({"a": THREE}, 1, {"b": THREE > 0}),
            "^among must be a tree like scores",
        ),
        (
            lambda: sj.top_k_mask(THREE, 1, jnp.ones(2, bool)),
            r"^among must hold bool arrays shaped like scores; got bool\[2\]",
        ),
        (
            lambda: sj.top_k_mask(THREE, 1, THREE),
            r"^among must hold bool arrays shaped like scores; got float32\[3\]",
        ),
        (lambda: sj.top_k_mask({}, 0), "^scores must hold at least one array"),
        (lambda: sj.top_k_mask(THREE > 0, 1), "^scores must be floats .* got bool"),
        (
            lambda: sj.kth_largest(jnp.ones(3, jnp.uint8), 1),
            "^scores must be floats .* got uint8",
        ),
        (
            lambda: sj.kth_largest(jnp.ones(3, jnp.complex64), 1),
            "^scores must be floats .* got complex64",
        ),
    ],
}

ROWS = [
    pytest.param(call, message, id=f"{group}-{i}")
    for group, rows in TABLE.items()
    for i, (call, message) in enumerate(rows)
]


@pytest.mark.parametrize(("call", "message"), ROWS)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    text = str(refusal.value)
    assert text.endswith(".") or "raises: " in text or "fails: " in text
    assert ". " not in text
    assert "\n" not in text


@pytest.mark.parametrize("make", [granet, gmp, static, acdc, *EXCHANGING])
def test_the_settings_that_the_table_starts_from_are_accepted(make):
    updates, _ = step(make(**{} if make in (granet, gmp, acdc) else {"sparsity": 0.5}))
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
