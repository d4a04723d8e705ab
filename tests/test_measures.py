"""What a run measures: held against its own states, and the same everywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import sparsejax as sj

pytest.importorskip("grain", reason="of the experiments extra")

from experiments.parallel import make_parallel
from experiments.recorder import Recorder
from experiments.run import Plan, is_measured
from experiments.step import TrainState, make_train_step, named_measures
from experiments.train import plan_chunks

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAN = Plan(epoch_steps=10, total_steps=37, eval_every=10)


def every_six(step):
    return (step > 0) & (step % 6 == 0)


@pytest.mark.parametrize("size", [1, 4, 50])
def test_chunks_end_at_what_is_measured(size):
    config = ConfigDict({"steps_per_call": size, "log_every_steps": 7})
    config.checkpoint_every_steps = 15
    chunks = list(plan_chunks(3, PLAN, config, 100, every_six))
    steps, taken = 3, set()
    for chunk in chunks:
        within = range(steps, steps + chunk.size)
        assert chunk.size in (1, size)
        assert chunk.may_update or not any(map(every_six, within))
        if chunk.measured:
            assert chunk.size == 1 and chunk.may_update
            taken.add(steps)
        steps += chunk.size
    assert steps == PLAN.total_steps
    updates = {6, 12, 18, 24, 30, 36}
    assert taken == updates | {9, 19, 29, 36}  # the last steps before evaluations


class Net(nn.Module):
    """A convolution and a classifier, without anything that depends on devices."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Dense(3)(jnp.mean(x, axis=(1, 2)))


STEPS, INTERVAL = 6, 2
IMAGES = np.random.default_rng(0).normal(size=(STEPS, 16, 4, 4, 8)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, (STEPS, 16))


def loss_gradient(params, step):
    def loss(params):
        logits = Net().apply({"params": params}, IMAGES[step], train=True)
        targets = jax.nn.one_hot(LABELS[step], 3)
        return jnp.mean(optax.softmax_cross_entropy(logits, targets))

    return jax.jit(jax.grad(loss))(params)


def train(mode, shard_state=False):
    """Trains by RigL and gives the states and the measures of each step."""
    tx = sj.rigl_transform(
        optax.sgd(0.5),
        sparsity=0.8,
        total_steps=STEPS,
        update_interval=INTERVAL,
        prune_rate=0.5,
        stop_step=STEPS - 1,
    )
    plan = Plan(epoch_steps=STEPS - 1, total_steps=STEPS, eval_every=STEPS - 1)

    def create():
        variables = Net().init(jax.random.key(0), IMAGES[0], train=False)
        params, opt_state = sj.init_sparse(tx, variables["params"])
        explored = sj.get_masks(opt_state)
        return TrainState(jnp.int32(0), params, {}, opt_state, explored)

    parallel = make_parallel(mode, jax.eval_shape(create), shard_state)
    step = make_train_step(
        Net(),
        tx,
        label_smoothing=0.0,
        accumulation=1,
        axis_name=parallel.axis_name,
        is_measured=lambda step: is_measured(plan, tx.is_update_step, step),
    )
    compiled = parallel.train(
        lambda state, _, chunk: step(state, jax.tree.map(lambda x: x[0], chunk))
    )
    state = parallel.put_state(jax.jit(create)())
    states, found = [jax.device_get(state)], []
    for t in range(STEPS):
        batch = {"image": IMAGES[t : t + 1], "label": LABELS[t : t + 1]}
        state, metrics = compiled(state, (), parallel.put_chunk(batch))
        states.append(jax.device_get(state))
        found.append(jax.device_get(metrics["measures"]))
    return states, found


@pytest.fixture(scope="module")
def over_devices():
    return train("pmap")


def test_a_run_measures_its_updates_and_its_last_steps(over_devices):
    states, found = over_devices
    history = [sj.get_masks(state.opt_state) for state in states]
    names = ("Conv_0", "Dense_0")
    for t, measures in enumerate(found):
        before, masks = history[t], history[t + 1]
        if t not in (2, 4, 5):  # two updates, an evaluation and the end
            assert not any(np.any(x) for x in measures)
            assert sj.jaccard(before, masks) == 1
            continue
        figures = named_measures(measures, masks)
        assert figures["itop_rate"] == sj.itop_rate(history[: t + 2]).item()
        grads = loss_gradient(states[t].params, t)
        for name in names:
            path, mask = f"{name}/kernel", masks[name]["kernel"]
            assert figures[f"density/{path}"] == mask.mean()
            dead = [not mask[..., j].any() for j in range(mask.shape[-1])]
            assert figures[f"dead_units/{path}"] == np.mean(dead)
            unread = [not mask[..., i, :].any() for i in range(mask.shape[-2])]
            assert figures[f"dead_inputs/{path}"] == np.mean(unread)
            reached = grads[name]["kernel"][before[name]["kernel"]]
            flow = figures[f"gradient_flow/{path}"]
            np.testing.assert_allclose(flow, np.sum(reached**2), rtol=1e-4)
        total = sum(figures[f"gradient_flow/{name}/kernel"] for name in names)
        assert figures["gradient_flow"] == pytest.approx(total)
        counts = sj.dead_units(masks).item(), sj.dead_inputs(masks).item()
        assert figures["dead_units"] == counts[0] / (8 + 3)
        assert figures["dead_inputs"] == counts[1] / (8 + 8)
        assert figures["empty_layers"] == 0
    explored = [sj.itop_rate([state.explored]).item() for state in states]
    assert explored == sorted(explored) and explored[-1] > explored[0]


def test_a_sharded_state_measures_the_same(over_devices):
    for one, other in zip(over_devices[1], train("jit", shard_state=True)[1]):
        for name in one._fields:
            close = {"rtol": 1e-5 if name == "gradient_flow" else 0}
            np.testing.assert_allclose(
                getattr(one, name), getattr(other, name), **close, err_msg=name
            )


def test_layers_that_training_empties_are_warned_of_once():
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    tx = sj.static_transform(optax.sgd(0.1), sparsity=0.5)
    params, opt_state = sj.init_sparse(tx, params)
    state = TrainState(jnp.int32(0), params, {}, opt_state, sj.get_masks(opt_state))
    recorder = Recorder(None, None, state)
    measured = {"empty_layers": 1, "density/a": 0.5, "density/b": 0.0}
    with pytest.warns(sj.EmptyLayerWarning, match=r"^1 of 2 .* at step 7: 'b';"):
        recorder._warn_of_empty_layers(7, measured)
    recorder._warn_of_empty_layers(8, measured)
    recorder._warn_of_empty_layers(9, measured | {"empty_layers": 0})
