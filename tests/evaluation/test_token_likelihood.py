import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.data.pipeline import Pipeline
from var_jax.evaluation.token_likelihood import TokenLikelihood, table
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network
from var_jax.objectives.likelihood import Likelihood
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
VOCAB, EXAMPLES = 16, 13


class Tokens:
    num_classes, class_names, channels = 5, tuple("abcde"), 0

    def __init__(self):
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, VOCAB, (EXAMPLES, PYRAMID.length)).astype(np.int32)
        self.labels = rng.integers(0, 5, EXAMPLES)

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "label": int(self.labels[index])}

    def name(self, index):
        return f"tokens[{index}]"


class Pictures(Tokens):
    """Pictures whose pixels are the tokens."""

    channels = 1

    def __getitem__(self, index):
        image = self.tokens[index].astype(np.uint8)[None, :, None]
        return {"image": image, "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class PixelTokenizer:
    codec: ResidualVQ
    image_shape = (1, PYRAMID.length, 1)

    def apply(self, variables, images, method):
        assert method == "read"
        return jnp.round((images[:, 0, :, 0] + 1) * 127.5).astype(jnp.int32)


@pytest.fixture(scope="module")
def model():
    codec = ResidualVQ(PYRAMID, VOCAB, 4)
    var = VAR(PYRAMID, 5, 4, depth=1, width=32, num_heads=2)
    tokenizer = VQVAE(codec, 1, 8, (1,), 1, False, norm_groups=4)
    objective = Likelihood(Network(var, CategoricalHead(VOCAB, 32)), tokenizer)

    def init():
        parts = objective.frozen_parts().items()
        frozen = {name: part.init(jax.random.key(0)) for name, part in parts}
        return sharding.unbox((objective.init_params(jax.random.key(1)), frozen))

    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(init)  # Any parameters will do, and need no program.
    params, frozen = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    return objective, params, frozen


@pytest.fixture(scope="module")
def direct(model):
    """One batch of everything, without pipeline, mask or mesh."""
    objective, params, frozen = model
    source = Tokens()
    batch = {"tokens": source.tokens, "label": source.labels.astype(np.int32)}
    loss, found = jax.jit(objective.per_token)(params, frozen, batch)
    return [np.asarray(x, np.float64) for x in (loss, found["loss"], found["accuracy"])]


def measure(model, source, batch_size, devices, transform=None):
    objective, params, frozen = model
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    pipeline = Pipeline(source, transform, batch_size, train=False)
    with sharding.activate(mesh, "replicated"):
        params = jax.device_put(params, sharding.replicated_sharding(mesh))
        return TokenLikelihood(objective, frozen, pipeline, mesh)(params)


@pytest.mark.parametrize("batch_size, devices", [(4, 1), (8, 8)])
def test_every_example_counts_once(model, direct, batch_size, devices):
    scores = measure(model, Tokens(), batch_size, devices)
    _, nll, correct = direct
    assert scores.count == EXAMPLES
    np.testing.assert_allclose(scores.means["loss"], nll.mean(0), rtol=1e-5)
    np.testing.assert_allclose(scores.means["accuracy"], correct.mean(0), rtol=1e-6)
    assert scores.deviation == pytest.approx(nll.mean(1).std(), rel=1e-4)


def test_pixels_and_their_tokens_score_alike(model, direct):
    objective, params, frozen = model
    objective = Likelihood(objective.network, PixelTokenizer(objective.codec), from_images=True)
    scores = measure((objective, params, frozen), Pictures(), 8, 1, lambda record, rng: record)
    np.testing.assert_allclose(scores.means["loss"], direct[1].mean(0), rtol=1e-5)


def test_nats_bits_and_levels_agree(model, direct):
    scores = measure(model, Tokens(), 8, 1)
    values = scores.as_dict((6, 6, 3))
    total = direct[1].sum(1).mean()
    assert values["nats"] == pytest.approx(total, rel=1e-5)
    assert values["nats_per_token"] == pytest.approx(total / 14, rel=1e-5)
    assert values["bits_per_token"] == pytest.approx(total / np.log(2) / 14, rel=1e-5)
    assert values["bits_per_pixel_channel"] == pytest.approx(total / np.log(2) / 108, rel=1e-5)
    assert [level["tokens"] for level in values["levels"]] == [1, 4, 9]
    assert sum(level["nats"] for level in values["levels"]) == pytest.approx(values["nats"])
    hits = sum(level["accuracy"] * level["tokens"] for level in values["levels"])
    assert hits / 14 == pytest.approx(values["accuracy"])
    lines = table(values).splitlines()
    assert len(lines) == 5 and lines[-1].split()[:2] == ["all", "14"]
