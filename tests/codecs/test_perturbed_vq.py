"""Perturbed codes: plain where nothing is replaced, and errors that later levels correct."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import filled

from var_jax import build
from var_jax.codecs.perturbed_vq import PerturbedVQ
from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.perturbation import Perturbation, Replacements
from var_jax.resample import resize

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
SIZES = dict(vocab_size=32, code_dim=4, phi_sharing=2)
PLAIN = ResidualVQ(PYRAMID, **SIZES)
BATCH = 3


def make(**settings):
    chosen = dict(num_nearest=8, example_rate=1.0, lesson_rate=1.0)
    return PerturbedVQ(PYRAMID, **SIZES, **{**chosen, **settings})


def features():
    shape = (BATCH, *PYRAMID.grid, SIZES["code_dim"])
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def init(key, codec=PLAIN):
    return codec.init(key, features(), method="encode")["params"]


PARAMS = jax.tree.map(jnp.asarray, filled(init, 0))


def keys(count=BATCH):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(count))


def apply(codec, method, *args):
    return codec.apply({"params": PARAMS}, *args, method=method)


#: The same, compiled.
run = jax.jit(apply, static_argnums=(0, 1))


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), a, b)


def test_its_parameters_are_those_of_the_plain_codec():
    own = filled(functools.partial(init, codec=make()), 1)
    assert jax.tree.map(np.shape, PARAMS) == jax.tree.map(np.shape, own)


@pytest.mark.parametrize(
    "settings", [dict(token_rate=0.0), dict(num_nearest=1), dict(example_rate=0.0, lesson_rate=0.0)]
)
def test_without_strength_everything_is_plain(settings):
    codec, expected = make(**settings), run(PLAIN, "quantize", features())
    close(run(codec, "quantize", features(), False, keys()), expected)
    lesson = run(codec, "lesson", run(codec, "read", features()), None, keys())
    source = run(
        PLAIN, "encode", features().astype(jnp.float16 if codec.lesson_rate else "float32")
    )
    close(lesson, run(PLAIN, "lesson", source))


def test_evaluation_is_plain():
    codec = make()
    close(run(codec, "quantize", features()), run(PLAIN, "quantize", features()))
    exact = run(codec, "quantize", features(), jnp.array(True), keys())
    close(exact, run(PLAIN, "quantize", features(), jnp.array(True)))
    assert exact.loss == 0
    lesson = run(codec, "lesson", features(), None, None)
    close(lesson, run(PLAIN, "lesson", run(PLAIN, "encode", features())))


def test_a_lesson_corrects_what_was_perturbed():
    codec, drawn = make(), Perturbation(1.0, 1.0, 8).draw(keys(), PYRAMID.length)
    lesson = run(codec, "corrected", features(), drawn)
    carry, inputs = None, [np.zeros((BATCH, 1, 4), np.float32)]
    for k, shape in enumerate(PYRAMID.shapes):
        part = PYRAMID.level(k)
        right = apply(PLAIN, "nearest", features(), carry, k)
        np.testing.assert_array_equal(lesson.targets[:, part], right)
        # The code of the drawn rank among those nearest to what is missing.
        rest = features() if carry is None else features() - carry
        vectors = np.asarray(resize(rest, shape, "area")).reshape(BATCH, -1, 1, 4)
        ranked = np.square(vectors - PARAMS["codebook"]).sum(-1).argsort(-1)
        used = np.take_along_axis(ranked, np.asarray(drawn.rank[:, part, None]), -1)[..., 0]
        assert (used != right).any()
        carry, following = apply(PLAIN, "advance", carry, k, jnp.asarray(used, jnp.int32))
        if following is not None:
            inputs.append(following)
    close(lesson.inputs, np.concatenate(inputs, 1))
    made = run(codec, "quantize_replaced", features(), drawn)
    close(made.features, carry)
    np.testing.assert_array_equal(made.targets, lesson.targets)


def test_the_gradient_is_straight_through_and_the_loss_that_of_the_right_codes():
    """On a single level, where no level follows that would have to correct anything."""
    pyramid = ScalePyramid.from_patch_nums((3,))
    one = PerturbedVQ(pyramid, **SIZES, num_nearest=8, example_rate=1.0)
    plain = ResidualVQ(pyramid, **SIZES)
    cotangent = features()[::-1]

    @functools.partial(jax.jit, static_argnums=0)
    def total(codec, x, given):
        def value(x, given):
            args = (False, keys()) if codec is one else ()
            made = codec.apply({"params": given}, x, *args, method="quantize")
            return made.loss + (made.features * cotangent).sum(), made.features

        return jax.grad(value, argnums=(0, 1), has_aux=True)(x, given)

    grads, made = total(one, features(), PARAMS)
    expected, unchanged = total(plain, features(), PARAMS)
    close(grads, expected)
    assert (np.abs(made - unchanged).max(-1) > 1e-3).mean() > 0.5


def test_what_is_replaced_is_an_examples_own():
    perturbation = Perturbation(0.5, 0.3, 4)
    drawn = jax.jit(lambda keys: perturbation.draw(keys, 50))(keys(200))
    alone = perturbation.draw(keys(200)[7:8], 50)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[7:8], b), drawn, alone)
    touched = np.asarray(drawn.replaced).any(1)
    assert 0.4 < touched.mean() < 0.6
    assert 0.25 < np.asarray(drawn.replaced)[touched].mean() < 0.35
    assert {*np.asarray(drawn.rank).ravel().tolist()} == {0, 1, 2, 3}
    still = Replacements(jnp.zeros_like(drawn.replaced), drawn.rank)
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=(200, 50, 4)), jnp.float32)
    book = PARAMS["codebook"]
    nearest = np.square(vectors[:5, :, None] - book).sum(-1).argmin(-1)
    np.testing.assert_array_equal(perturbation.codes(vectors, book, still)[:5], nearest)


def test_a_prefix_of_levels_is_the_beginning():
    whole = run(make(), "lesson", features(), None, keys())
    part = apply(make(), "lesson", features(), PYRAMID.prefix(2), keys())
    close(part.inputs, whole.inputs[:, :5])
    np.testing.assert_array_equal(part.targets, whole.targets[:, :5])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 0.1 and 2"):
        make(example_rate=0.1, token_rate=2)
    with pytest.raises(ValueError, match="num_nearest must be 1 or more"):
        make(num_nearest=0)
    with pytest.raises(ValueError, match="num_nearest is 33, but there are 32 codes"):
        make(num_nearest=33)


@pytest.mark.parametrize("variant", ["", "smallest", "d16"])
def test_the_variants_are_known(variant):
    config = load("family/robustok", variant)
    build.check_config(config)
    assert isinstance(build.tokenizer(config).codec, PerturbedVQ)
