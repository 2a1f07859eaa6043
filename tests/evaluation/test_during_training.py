import types

import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.data.pipeline import Pipeline
from var_jax.data.sources import ArraySource
from var_jax.evaluation.distances import frechet
from var_jax.evaluation.during_training import Every, Reconstruction, SmallFID
from var_jax.evaluation.inception.extractor import FeatureExtractor, MeshExtractor
from var_jax.parallel import arrays, sharding
from var_jax.pixels import to_float, to_uint8
from var_jax.train.experiment import Evaluation
from var_jax.train.state import TrainState


def state(params, ema=None):
    return TrainState(jnp.int32(3), params, (), ema, (), jnp.int32(0))


class Scaling:
    """A tokenizer that multiplies by its parameter."""

    def apply(self, variables, images, method):
        assert method == "reconstruct"
        return images * variables["params"]


def sorted_images(count=50):
    """Grey pictures, brighter and brighter."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 1)
    )
    return ArraySource(np.ascontiguousarray(images), np.zeros(count, np.int64), ("grey",))


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def test_the_picture_is_spread_over_the_split(mesh):
    pipeline = Pipeline(sorted_images(), lambda record, rng: record, 8, train=False)
    found = Reconstruction(Scaling(), pipeline, mesh, shown=5)(
        state({"tokenizer": jnp.float32(1.0)}), 3
    )
    picture = found.images["reconstructions"]
    assert picture.shape == (2 + 2 * 6, 2 + 5 * 6, 1)
    assert picture[3, 3::6, 0].tolist() == [5, 15, 25, 35, 45]
    assert picture[9, 3::6, 0].tolist() == [5, 15, 25, 35, 45]
    assert found.metrics["psnr"] > 90


def test_the_average_of_the_parameters_is_evaluated_and_frozen_ones_are_not_asked_for(mesh):
    pipeline = Pipeline(sorted_images(6), lambda record, rng: record, 8, train=False)
    trained = state({"tokenizer": jnp.float32(0.0)}, ema={"tokenizer": jnp.float32(1.0)})
    found = Reconstruction(Scaling(), pipeline, mesh, shown=16)(trained, 3)
    assert found.metrics["psnr"] > 90
    assert found.images["reconstructions"].shape[1] == 2 + 6 * 6  # There are six pictures only.
    frozen = Reconstruction(Scaling(), pipeline, mesh, params=np.float32(1.0))
    assert frozen(state({}), 3).metrics["psnr"] > 90


def test_rfid_is_the_distance_of_the_held_out_images_to_their_reconstructions(
    mesh, inception_weights
):
    # The last batch is filled up, and what fills it does not count.
    pipeline = Pipeline(sorted_images(6), lambda record, rng: record, 8, train=False)
    extractor = FeatureExtractor(inception_weights, ("2048",), batch_size=8)
    on_mesh = MeshExtractor(inception_weights, mesh, ("2048",))
    evaluator = Reconstruction(Scaling(), pipeline, mesh, shown=0, extractor=on_mesh)
    images = sorted_images(6).images

    def features(scale):
        made = to_uint8(to_float(images) * np.float32(scale))
        return frechet.statistics(extractor(np.repeat(made, 3, -1))["2048"])

    for scale in (0.5, 0.9):  # The second time the originals are known.
        trained = state({"tokenizer": jnp.float32(0)}, ema={"tokenizer": jnp.float32(scale)})
        with sharding.activate(mesh, "replicated"):  # As inside the training loop.
            found = evaluator(trained, 3)
        expected = frechet.frechet_distance(features(scale), features(1))
        assert found.metrics["rfid"] == pytest.approx(expected, rel=1e-5) and expected > 1e-3
        assert not found.images


def test_every_runs_at_its_multiples_and_at_the_end():
    def ran(every, steps):
        evaluator = Every(lambda state, step: Evaluation({"x": 1}), every, num_steps=10)
        return [step for step in steps if evaluator(None, step).metrics]

    assert ran(4, range(1, 11)) == [4, 8, 10]
    assert ran(0, range(1, 11)) == [10]


def test_fid_of_a_training_is_the_evaluator_s(mesh, inception_weights):
    rng = np.random.default_rng(0)
    images = np.kron(rng.uniform(-1, 1, (8, 4, 4, 1)), np.ones((1, 4, 4, 1))).astype(np.float32)
    labels_seen = []

    class Sampler:
        network = types.SimpleNamespace(transformer=types.SimpleNamespace(num_classes=3))

        def on_mesh(self, params, labels, seed, batch_size):
            assert params == "average" and seed == 7 and batch_size == 5
            labels_seen.extend(labels)
            for start in (0, 5):
                part = np.resize(to_uint8(images[start : start + 5]), (8, *images.shape[1:]))
                part = arrays.place(part, sharding.batch_sharding(mesh))
                numbers = np.arange(start, min(start + 5, 8))
                yield numbers, types.SimpleNamespace(images=part)

    extractor = FeatureExtractor(inception_weights, ("2048",), batch_size=8)
    features = extractor(np.repeat(to_uint8(images), 3, -1))["2048"]
    real = frechet.statistics(1.1 * features[::2])
    on_mesh = MeshExtractor(inception_weights, mesh, ("2048",))
    evaluator = SmallFID(Sampler(), on_mesh, real, 8, 5, seed=7)
    with sharding.activate(mesh, "replicated"):  # As inside the training loop.
        found = evaluator(state("raw", ema="average"), 3).metrics
    expected = frechet.frechet_distance(frechet.statistics(features), real)
    assert found["fid"] == pytest.approx(expected, rel=1e-6) and expected > 1e-3
    assert found["fid_seconds"] > 0
    assert np.bincount(labels_seen).tolist() == [3, 3, 2]


def test_a_fid_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        SmallFID(types.SimpleNamespace(), None, None, 1, 8, 0)
