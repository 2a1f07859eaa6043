"""Training some parameters: the others keep their bits, and the optimizer nothing of them."""

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest

from var_jax import build, subsets
from var_jax.checkpoint import Checkpointer
from var_jax.objectives.base import Aux
from var_jax.train import optim
from var_jax.train.metrics import read_metrics
from var_jax.train.state import create
from var_jax.train.step import make_train_step


class Square:
    """Pulls all parameters to 0."""

    def init_params(self, key):
        return {"moves": jnp.ones(2), "stays": jnp.full(2, -0.0)}

    def init_stats(self):
        return ()

    def loss(self, params, frozen, stats, batch, keys, step):
        value = jnp.square(params["moves"]).sum() + (params["stays"] * batch["index"]).sum()
        return value, Aux({"loss": value})

    def after_update(self, params, ema, stats, carry, key, step):
        return params, ema, stats


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_others_have_no_gradient(microbatches):
    objective = Square()
    optimizer = optim.make_optimizer(optim.OptimizerConfig(0.1, clip_norm=0.0), 9)
    state = create(objective, optimizer, jax.random.key(0), True, ("moves",))
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 1 + 2 * 2
    step = make_train_step(objective, optimizer, 0, microbatches, 0.9, ("moves",))
    batch = {"index": jnp.arange(2, dtype=jnp.uint32)}
    state, metrics = jax.jit(step)(state, {}, batch)
    assert metrics["gradient_norm"] == pytest.approx(8**0.5)
    for found in (state.params, state.ema):
        assert (found["moves"] < 1).all()
        # To the bit: the sign of -0 too.
        assert found["stays"].tobytes() == np.full(2, -0.0, np.float32).tobytes()


def test_a_run_trains_what_its_config_names(tmp_path):
    given = methods.prepare(tmp_path, "mnist5k")
    given |= {"train.trained": ("*/attention/*",), "train.num_steps": 2}
    with pytest.raises(ValueError, match="trains a part .*give --config.train.initial_checkpoint"):
        build.transformer_experiment(methods.smallest("mnist5k", given))
    given["train.initial_checkpoint"] = str(tmp_path / "model")
    assert build.run(methods.smallest("mnist5k", given), str(tmp_path / "run"), "transformer")
    logged = {name for metrics in read_metrics(tmp_path / "run") for name in metrics}
    # Operations are counted for passes that train everything.
    assert "images_per_second_per_chip" in logged and "teraflops_per_second_per_chip" not in logged

    def read(name, part):
        with Checkpointer(tmp_path / name, read_only=True) as reader:
            return reader.restore_params(part, as_numpy=True)[0]

    before, after = read("model", "params"), read("run", "params")
    (new, rest), (old, old_rest) = (subsets.split(p, ("*/attention/*",)) for p in (after, before))
    jax.tree.map(np.testing.assert_array_equal, rest, old_rest)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), new, old)))
    kept = [x.shape for x in jax.tree.leaves(read("run", "opt_state")) if np.size(x) > 1]
    assert sorted(kept) == sorted(2 * [x.shape for x in jax.tree.leaves(new)])


def test_patterns_beside_an_objective_that_trains_a_part_are_refused():
    config = methods.smallest("family/hmar_masked", {"train.trained": ("masked/head/*",)})
    tokenizer = build.LoadedTokenizer(build.tokenizer(config), None, "", config)
    objective = build.objective(config, tokenizer, from_images=False)
    with pytest.raises(ValueError, match=r"objective trains masked/\* and nothing else; leave one"):
        build.trained_patterns(config, objective)
