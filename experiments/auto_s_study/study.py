"""The study: labels and a criterion of one network, then their use on others.

For each seed, on a network of the source:

    prune by trained magnitude and rewind, round by round; count rounds survived,
    fit the scoring network to first weights and gradients, save it.

Then, with the scoring network read from its file, on a new network of every target:

    correlate scores with the rounds that the target's own weights survive,
    prune once at each sparsity, train, test.

All seeds run side by side on one `jax.vmap` axis, each with a scoring network of its
own, so that they are independent of each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.stats import spearmanr

import sparsejax as sj
from experiments.auto_s_study.problem import Problem, load_problem
from experiments.auto_s_study.programs import Case, Programs, make_programs
from experiments.auto_s_study.results import DENSE, HELD_OUT, METHODS, Record
from experiments.models.mlp import ScoreMLP
from experiments.record.progress import Progress
from experiments.record.study import do_once
from experiments.training import criterion

PyTree = Any
Load = Callable[[str], tuple[Problem, Programs]]

# What is drawn from a seed, each with a key of its own: the networks of the source and
# of a target differ, also where both have the same recipe.
_STREAMS = ("source", "source_order", "split", "fit", "target", "target_order", "masks")


def run_study(config: ConfigDict, workdir: Path) -> tuple[list[Record], float]:
    """Does what is missing of a study: learns the criteria, then tries each target.

    The scoring networks are saved as `score_SEED.msgpack`.

    Args:
        config: As in `experiments/configs/auto_s.py`, checked.
        workdir: A folder that can be written to.

    Returns:
        All records, and the wall time of all commands together, in seconds.
    """
    scorer = ScoreMLP(config.score_width)

    @cache  # what is compiled for a network serves all parts that have it
    def load(name: str) -> tuple[Problem, Programs]:
        problem = load_problem(name, config)
        return problem, make_programs(problem.model, scorer, config)

    parts = {HELD_OUT: partial(_learn, load, scorer, config, workdir)}
    for target in config.targets:
        for measure, do in (("correlation", _rank_weights), ("accuracy", _prune)):
            parts[f"{target}_{measure}"] = partial(
                do, target, load, scorer, config, workdir
            )
    records, seconds = [], 0.0
    with Progress(len(parts), description="Criteria, and their targets") as progress:
        for done, (name, do) in enumerate(parts.items(), start=1):
            found, took = do_once(workdir / "parts" / f"{name}.json", Record, do)
            records += found
            seconds += took
            progress.update(done)
    return records, seconds


def _draw(
    target: str, load: Load, scorer: ScoreMLP, config: ConfigDict, workdir: Path
) -> tuple[Programs, Case, dict[str, PyTree]]:
    """Draws new networks of a target, and scores their weights."""
    files = [_file(workdir, seed) for seed in config.seeds]
    variables = _stack([criterion.load_score(file, scorer) for file in files])
    problem, programs = load(target)
    cases = _cases(problem, config, "target")
    return programs, cases, programs.score(cases, variables)


def _rank_weights(
    target: str, load: Load, scorer: ScoreMLP, config: ConfigDict, workdir: Path
) -> list[Record]:
    programs, cases, scores = _draw(target, load, scorer, config, workdir)
    return _correlate(target, scores, programs.label(cases), config)


def _prune(
    target: str, load: Load, scorer: ScoreMLP, config: ConfigDict, workdir: Path
) -> list[Record]:
    programs, cases, scores = _draw(target, load, scorer, config, workdir)
    dense = jax.vmap(sj.dense_masks)(cases.params)
    one = jax.tree.map(lambda leaf: leaf[0], cases.params)
    size = sj.count_prunable(sj.dense_masks(one))
    records = []
    for method, sparsity in _plan(config):
        if method == DENSE:
            masks = dense
        elif method == "random":
            masks = programs.draw(cases, sj.active_counts(one, sparsity))
        else:
            keep = sj.keep_count(sparsity, size)
            masks = programs.keep_best(scores[method], dense, keep)
        accuracies = programs.accuracy(cases, masks)
        records += _tested(target, method, sparsity, masks, accuracies, config)
    return records


def _plan(config: ConfigDict) -> Iterator[tuple[str, float]]:
    yield DENSE, 0.0
    for method in METHODS:
        for sparsity in config.sparsities:
            yield method, sparsity


def _file(workdir: Path, seed: int) -> Path:
    return workdir / f"score_{seed}.msgpack"


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _keys(config: ConfigDict, stream: str) -> jax.Array:
    """One key a seed."""
    number = _STREAMS.index(stream)
    keys = jax.vmap(jax.random.key)(np.asarray(config.seeds, np.uint32))
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _cases(problem: Problem, config: ConfigDict, role: str) -> Case:
    """Draws the networks of all seeds; `role` is "source" or "target"."""
    example = problem.train.inputs[0, :1]
    init = jax.jit(jax.vmap(lambda key: problem.model.init(key, example)))
    return Case(
        params=init(_keys(config, role)),
        order_key=_keys(config, f"{role}_order"),
        random_key=_keys(config, "masks"),
        train=problem.train,
        test=problem.test,
        prune_set=problem.prune_set,
    )


def _learn(
    load: Load, scorer: ScoreMLP, config: ConfigDict, workdir: Path
) -> list[Record]:
    """Fits a scoring network for each seed, saves it, and tries it on other weights."""
    problem, programs = load(config.source)
    cases = _cases(problem, config, "source")
    features, labels = programs.featurise(cases), programs.label(cases)

    @jax.jit
    @jax.vmap
    def learn(
        split: jax.Array, key: jax.Array, features: PyTree, labels: PyTree
    ) -> tuple[PyTree, Any]:
        fit, test = criterion.split_weights(split, features, labels, config.held_out)
        epochs = config.score_epochs
        variables = criterion.fit_score(scorer, key, fit, epochs=epochs)
        weights, gradients = jnp.moveaxis(test.features, -1, 0)
        scores = {
            "auto_s": scorer.apply(variables, test.features),
            "snip": jnp.abs(weights * gradients),
            "magnitude": jnp.abs(weights),
            "random": jax.random.uniform(jax.random.fold_in(key, 1), weights.shape),
        }
        return variables, (scores, test.labels)

    keys = _keys(config, "split"), _keys(config, "fit")
    variables, (scores, truth) = learn(*keys, features, labels)
    for place, seed in enumerate(config.seeds):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], variables)
        criterion.save_score(_file(workdir, seed), own)
    return _correlate(HELD_OUT, scores, truth, config)


def _correlate(
    network: str, scores: Mapping[str, PyTree], labels: PyTree, config: ConfigDict
) -> list[Record]:
    """Ranks all weights of each network by each score, and by their labels."""

    def in_rows(tree: PyTree) -> np.ndarray:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)

    truth = in_rows(labels)
    return [
        Record(network, "correlation", method, None, seed, float(found), None, None)
        for method in METHODS
        for seed, found in zip(
            config.seeds,
            (
                spearmanr(*pair).statistic
                for pair in zip(in_rows(scores[method]), truth)
            ),
        )
    ]


def _tested(
    network: str,
    method: str,
    sparsity: float,
    masks: PyTree,
    accuracies: jax.Array,
    config: ConfigDict,
) -> list[Record]:
    layers = jax.tree.leaves(jax.vmap(partial(sj.count_active, scope="layer"))(masks))
    counts = np.stack(layers, axis=1)
    return [
        Record(
            network=network,
            measure="accuracy",
            method=method,
            sparsity=sparsity,
            seed=seed,
            value=float(accuracies[place]),
            active=int(counts[place].sum()),
            empty_layers=int((counts[place] == 0).sum()),
        )
        for place, seed in enumerate(config.seeds)
    ]
