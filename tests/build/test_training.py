import jax
import jax.numpy as jnp
import pytest
from recipes import TRANSFORMERS, load

from var_jax import build
from var_jax.build import training
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.tokenizer.lpips import LPIPS


@pytest.mark.parametrize("name", ["mnist5k", "emoji64", "tokenizer_imagenet256"])
def test_every_tokenizer_training_builds(name):
    config = load(name)
    objective, frozen, optimizers = build.vqgan(config)
    assert ("discriminator" in optimizers) == bool(config.tokenizer_train.adversarial_weight)
    assert frozen == {}
    assert objective.tokenizer == build.tokenizer(config)


def test_the_perceptual_loss_takes_one_pass_and_the_score_is_exact(monkeypatch):
    monkeypatch.setattr(training, "load_lpips", lambda *paths: {})
    config = load("tokenizer_imagenet256")
    config.tokenizer_train.lpips_vgg = "vgg16.pth"
    objective, _, _ = build.vqgan(config)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)

    def precisions(module):
        params = jax.eval_shape(module.init, jax.random.key(0), images, images)
        jaxpr = jax.make_jaxpr(module.apply)(params, images, images)
        return {
            eqn.params["precision"]
            for eqn in jaxpr.eqns
            if eqn.primitive.name == "conv_general_dilated"
        }

    default, highest = jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST
    assert precisions(objective.perceptual) == {(default, default)}
    assert precisions(LPIPS()) == {(highest, highest)}


@pytest.mark.parametrize("recipe", TRANSFORMERS)
def test_every_transformer_training_builds(recipe):
    config = load(*recipe)
    settings = build.train_settings(config, "train")
    build.optimizer_config(config.train.optimizer, "train.optimizer", settings.batch_size)


def test_the_learning_rate_is_for_256_images():
    config = load("var_imagenet256", "d30")
    settings = build.optimizer_config(config.train.optimizer, "x", config.train.batch_size)
    assert settings.learning_rate == pytest.approx(8e-5 * 4)


def test_progressive_training_changes_the_objective_and_only_then():
    config = load("mnist5k")
    with config.unlocked():
        config.train.progressive = dict(until=0.5, first=0, ramp_steps=10)
    config.train.num_steps, config.train.optimizer.warmup_steps = 100, 10
    module = build.tokenizer(config)
    loaded = build.LoadedTokenizer(module, None, "", config)
    objective = build.objective(config, loaded, from_images=False)
    trained = [objective.at(step).trained for step in range(100)]
    levels = [t.pyramid.num_levels for t in trained]
    assert levels[0] == 1 and levels[99] == 4 and 2 in levels
    assert trained[0].ramp_steps == 0 and trained[levels.index(2)].ramp_steps == 10
    assert trained[99] == TrainedLevels(build.pyramid(config))
    # Equal ones are compiled once.
    assert objective.at(0) == objective.at(1) and len({objective.at(i) for i in range(100)}) == 4


@pytest.mark.parametrize("recipe", [("var_imagenet256", "d30"), ("var_imagenet512",)])
@pytest.mark.parametrize("count, shape", [(8, (1, 8, 1)), (64, (4, 16, 1)), (256, (16, 16, 1))])
def test_the_recipes_meshes(recipe, count, shape):
    devices = [jax.devices()[0]] * count
    assert tuple(build.make_mesh(load(*recipe), devices).shape.values()) == shape
