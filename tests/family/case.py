"""One golden case of the family: config, weights, inputs and outputs of the public code."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from goldens.fill import fill

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.convert import mapping, vqvae
from var_jax.convert.lazy_state import LazyState, LazyTensor
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.pyramid import ScalePyramid

#: Entries of official state dicts that the code computes from the config.
DERIVED = (
    *("lvl_1L", "attn_bias_for_masking", "mask", "patch_nums"),
    *("freqs", "freqs_cos", "freqs_sin"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder of goldens/family, or of FAMILY_GOLDENS.

    Attributes:
      folder: holds config.json, outputs.npz and layouts.
    """

    folder: pathlib.Path

    @functools.cached_property
    def config(self):
        return json.loads((self.folder / "config.json").read_text())

    @functools.cached_property
    def outputs(self):
        """What went in and came out, by name."""
        return dict(np.load(self.folder / "outputs.npz"))

    @functools.cached_property
    def grad_norms(self):
        return json.loads((self.folder / "grad_norms.json").read_text())

    def state(self, layout="layout"):
        """{official name: float32 array} of a layout; what the code computes is left out."""
        scale = self.config.get("fill_scale", {})
        named = json.loads((self.folder / f"{layout}.json").read_text())
        return {
            name: (fill(name, tuple(shape)) * np.float32(scale.get(name, 1))).astype(np.float32)
            for name, shape in named
            if name.rsplit(".", 1)[-1] not in DERIVED
        }

    def close(self, actual, name, tolerance=1e-4):
        """Asserts that an array is the output of a name: largest difference over the largest."""
        expected = self.outputs[name]
        actual = np.asarray(actual)
        assert actual.shape == expected.shape, (name, actual.shape, expected.shape)
        difference = np.abs(actual - expected).max()
        assert difference <= tolerance * np.abs(expected).max(), (name, difference)

    def equal(self, actual, name):
        """Asserts that integers are the output of a name."""
        np.testing.assert_array_equal(np.asarray(actual), self.outputs[name], err_msg=name)


def nhwc(x):
    """Images or feature maps from PyTorch's layout."""
    return np.transpose(x, (0, 2, 3, 1))


def nchw(x):
    """The inverse of `nhwc`."""
    return np.transpose(x, (0, 3, 1, 2))


def by_level(outputs, name):
    """The arrays name_0, name_1, ... put together along axis 1."""
    count = sum(key.rpartition("_")[0] == name and key[-1].isdigit() for key in outputs)
    return np.concatenate([outputs[f"{name}_{k}"] for k in range(count)], 1)


def lazy_state(state):
    """{name: array} as what a file of the same would give."""
    tensors = {name: LazyTensor(x.shape, x.dtype, lambda x=x: x) for name, x in state.items()}
    return LazyState("The case", tensors)


def read_params(state, rows, abstract, buffers=()):
    """Our parameters from official tensors by a table, and the place of each name.

    Args:
      state: {official name: array}; all of them must have a place, or be among `buffers`.
      rows: of `var_jax.convert.mapping`.
      abstract: shapes of our parameters, nested dicts.
      buffers: regular expressions of names that hold nothing to learn.
    """
    slots, lazily = mapping.expand(rows, abstract), lazy_state(state)
    mapping.check(lazily, slots, buffers, "The case")
    return jax.tree.map(jnp.asarray, mapping.read(lazily, slots, abstract)), slots


def loss_and_gradient(objective, params, frozen, batch):
    """Of an objective in evaluation, compiled."""

    @jax.jit
    def run(params):
        return jax.value_and_grad(lambda p: objective.loss(p, frozen, (), batch, None, 0)[0])(
            params
        )

    return run(params)


def next_scale_draws(network, params, codec, labels, cfg, noise=None, filters=(0, 0.0)):
    """Tokens, features, and the logits of each level before the draws.

    Args:
      network, params: of the model.
      codec: VAR's, and its parameters.
      labels, cfg: what is drawn, and how strongly it is guided at the last level.
      noise: of each level, see `GivenDraws`.
      filters: top_k and top_p.
    """
    module, codec_params = codec

    @jax.jit
    def run(params, keys):
        draws = GivenDraws(noise)
        sampling = CategoricalSampling(*filters, processors=(draws,))
        decoder = NextScale(LinearGuidance(cfg), sampling)
        found = decoder(network, params, module, codec_params, labels, keys)
        return found.targets, found.features, draws.seen

    return run(params, jax.random.split(jax.random.key(0), len(labels)))


def check_grad_norms(grads, slots, expected):
    """Asserts that gradients have the expected 2-norms, {official name: norm}."""
    flat = mapping.flatten(jax.device_get(grads))
    assert expected.keys() == slots.keys()
    largest = max(expected.values())
    for name, slot in slots.items():
        norm = np.linalg.norm(slot.to_theirs(flat[slot.path]))
        assert abs(norm - expected[name]) <= 1e-4 * expected[name] + 1e-7 * largest, name


class GivenDraws:
    """A logit processor that takes the most likely code after given noise, not one by the key.

    Attributes:
      noise: of each level; None is none, the most likely code.
      seen: the logits of each level that came.
    """

    def __init__(self, noise=None):
        self.noise, self.seen = noise, []

    def __call__(self, logits, level, pyramid):
        self.seen.append(logits)
        noisy = logits if self.noise is None else logits + self.noise[level]
        return jnp.where(noisy == noisy.max(-1, keepdims=True), 0.0, -jnp.inf)


def close_where_kept(case, logits, name):
    """Asserts that filtered logits are those of a name, but for the codes that were left out."""
    expected = case.outputs[name]
    case.close(np.where(np.isfinite(logits), logits, expected), name)
    assert np.isfinite(logits).any(-1).all()


def pyramid(case):
    """The levels of a case of squares."""
    return ScalePyramid.from_patch_nums(case.config["pn"])


@functools.cache
def residual_codec(case):
    """VAR's codec and its parameters."""
    config = case.config
    module = ResidualVQ(pyramid(case), config["V"], config["Cvae"], config["phi"])
    features = np.zeros((1, *module.pyramid.grid, config["Cvae"]), np.float32)
    init = functools.partial(module.init, method="encode")
    abstract = {"codec": nn.unbox(jax.eval_shape(init, jax.random.key(0), features)["params"])}
    rows = vqvae.rows(config["phi"])
    params, _ = read_params(case.state("vae_layout"), rows, abstract, vqvae.BUFFERS)
    return module, params["codec"]


def check_teacher_inputs(case):
    """Asserts VAR's tokens, and what is read for them."""
    module, params = residual_codec(case)

    @jax.jit
    def run(features):
        tokens = module.apply({"params": params}, features, method="encode")
        return tokens, module.apply({"params": params}, tokens, method="lesson")

    tokens, lesson = run(nhwc(case.outputs["features"]))
    np.testing.assert_array_equal(tokens, by_level(case.outputs, "tokens"))
    case.close(lesson.inputs[:, module.pyramid.sizes[0] :], "teacher_forcing_input")


def check_generation(case, network, params, name, cfg, sampled=False):
    """Tokens, features and logits of a generation with VAR's codec, and noise of the case.

    Args:
      case, network, params: of the method.
      name: of the case's arrays.
      cfg: how strongly the last level is guided.
      sampled: with the case's noise and filters; else the most likely codes.
    """
    noise, filters = None, (0, 0.0)
    if sampled:
        noise = [case.outputs[f"gumbel_{k}"] for k in range(pyramid(case).num_levels)]
        filters = case.config["top_k"], case.config["top_p"]
    labels = jnp.asarray(case.outputs["labels"])
    tokens, features, logits = next_scale_draws(
        network, params, residual_codec(case), labels, cfg, noise, filters
    )
    case.equal(tokens, f"{name}_tokens")
    case.close(nchw(features), f"{name}_f_hat")
    close_where_kept(case, jnp.concatenate(logits, 1), f"{name}_logits")


def check_teacher_forced(case, network, params, name):
    """Logits of the case's inputs under its labels and under 'no class'."""
    first = np.zeros((case.config["B"], pyramid(case).sizes[0], case.config["Cvae"]), np.float32)
    inputs = jnp.concatenate([first, case.outputs["teacher_forcing_input"]], 1)

    @jax.jit
    def run(params, labels):
        hidden, _ = network.hidden(params, inputs, labels)
        return network.head.apply({"params": params["head"]}, hidden)

    labels = case.outputs["labels"]
    case.close(run(params, labels), name)
    case.close(run(params, np.full_like(labels, case.config["ncls"])), f"{name}_uncond")
