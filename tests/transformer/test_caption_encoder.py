import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.data import captions
from var_jax.decoding.asking import request, sample_numbers
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache
from var_jax.transformer.captions import Captions, Prompts
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
TEXTS = ("", "bird", "赤い")


def encoder(length=8, **changes):
    return Captions(16, length, depth=2, num_heads=2, **changes)


def transformer(length=8, **changes):
    settings = dict(conditioner=encoder(length), cross_attention=True)
    return VAR(PYRAMID, 4, code_dim=3, depth=2, width=16, num_heads=2, **{**settings, **changes})


def prompts(texts=TEXTS, length=8):
    return Prompts(np.stack([captions.encode(text, length) for text in texts]))


@functools.cache
def params():
    """Of the transformer, different from zero everywhere."""
    x, rng = jnp.zeros((1, PYRAMID.length, 3)), np.random.default_rng(0)
    shapes = jax.eval_shape(transformer().init, jax.random.key(0), x, prompts(("a",)))["params"]
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), sharding.unbox(shapes)
    )


def encoder_params():
    return {name: x for name, x in params().items() if name.startswith(("byte_", "caption_"))}


@functools.cache
def jit_condition(**changes):
    return jax.jit(lambda p, g, keys: encoder(**changes).apply({"params": p}, g, keys))


def condition(given, keys=None, **changes):
    return jit_condition(**changes)(encoder_params(), given, keys)


def inputs(batch):
    shape = (batch, PYRAMID.length, 3)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@functools.cache
def jit_hidden(length=8):
    return jax.jit(lambda p, x, g: transformer(length).apply({"params": p}, x, g)[0])


def test_neither_padding_nor_the_batch_changes_what_a_prompt_gives():
    x = inputs(3)
    found = jit_hidden()(params(), x, prompts())
    short = {**params(), "byte_position": params()["byte_position"][:7]}
    np.testing.assert_allclose(jit_hidden(6)(short, x, prompts(length=6)), found, atol=2e-5)
    alone = jit_hidden()(params(), x[1:2], prompts(TEXTS[1:2]))
    np.testing.assert_allclose(alone[0], found[1], atol=2e-5)
    other = jit_hidden()(params(), x, prompts(("drib", *TEXTS[1:])))
    np.testing.assert_allclose(other[1:], found[1:], atol=2e-5)
    assert np.abs(other[0] - found[0]).max() > 1e-3


def test_the_empty_caption_is_a_start_and_letters_have_an_order():
    found = condition(prompts((*TEXTS, "drib")))
    assert found.mask.sum(1).tolist() == [1, 5, 7, 5] and found.tokens.shape == (4, 9, 16)
    assert np.abs(found.vector[1] - found.vector[3]).max() > 1e-3


def test_the_null_prompt_is_the_empty_caption_or_the_negative_one():
    asked = encoder()
    null = asked.null(prompts())
    assert null.negative is None and not np.asarray(null.text).any()
    steered = asked.steered(prompts(), ["x"] * 3)
    np.testing.assert_array_equal(steered.text, prompts().text)
    np.testing.assert_array_equal(asked.null(steered).text, prompts(["x"] * 3).text)


def test_dropout_takes_whole_captions_by_the_example():
    given, keys = prompts(TEXTS[1:] * 16), jax.random.split(jax.random.key(0), 32)
    found = condition(given, keys, drop_rate=0.5)
    kept, null = (np.asarray(condition(g).vector) for g in (given, encoder().null(given)))
    dropped = np.abs(found.vector - null).max(1) < 1e-6
    assert 6 < dropped.sum() < 26
    np.testing.assert_allclose(found.vector, np.where(dropped[:, None], null, kept), atol=1e-5)
    np.testing.assert_array_equal(found.mask.sum(1) == 1, dropped)


def test_level_by_level_with_a_cache_is_teacher_forcing():
    x, given = inputs(3), prompts()

    @jax.jit
    def stepped(params, x):
        cache, found = Cache(), []
        for k in range(PYRAMID.num_levels):
            read = x[:, PYRAMID.level(k)] if k else None
            y, cache = transformer().apply(
                {"params": params}, read, given, levels=range(k, k + 1), cache=cache
            )
            found.append(y)
        return jnp.concatenate(found, 1)

    found = stepped(params(), x)
    np.testing.assert_allclose(found, jit_hidden()(params(), x, given), atol=2e-5)


def test_with_nothing_to_read_it_is_var_with_the_captions_vectors_as_embeddings():
    x, own = inputs(3), encoder_params()
    blocks = dict(params()["blocks"])
    read = blocks.pop("cross_attention")
    silent = {**read, "out": jax.tree.map(jnp.zeros_like, read["out"])}
    silent = {**params(), "blocks": {**blocks, "cross_attention": silent}}
    plain = {name: value for name, value in params().items() if name not in own}
    vectors = condition(prompts()).vector
    plain |= {"blocks": blocks, "class_embedding": jnp.concatenate([vectors, vectors[:2]])}
    var = transformer(conditioner=None, cross_attention=False)
    expected = jax.jit(lambda p: var.apply({"params": p}, x, jnp.arange(3))[0])(plain)
    np.testing.assert_allclose(jit_hidden()(silent, x, prompts()), expected, atol=2e-5)


def test_what_is_typed_is_read_or_told(caplog):
    found = request(transformer(), ["a  bird", "赤い鳥", "", "赤い鳥"])
    assert [captions.decode(x) for x in found.given.text] == ["a bird", "赤い", "", "赤い"]
    (record,) = caplog.records  # Once, however often it is asked for.
    said = "The prompt '赤い鳥' has 9 bytes, of which this model reads 6: '赤い'."
    assert record.getMessage() == said
    assert request(transformer(), "bird").fields["caption"].shape == (1, 8)
    nothing = request(transformer(), None, count=2)
    assert not nothing.given.text.any() and len(nothing.numbers) == 2
    found = request(transformer(), TEXTS, negative="no").given
    assert [captions.decode(x) for x in found.negative] == ["no"] * 3
    of_classes = transformer(conditioner=None, cross_attention=False)
    assert request(of_classes, None, count=2).given.tolist() == [4, 4]


def test_the_numbers_of_samples_hang_on_the_text_and_how_often_it_came():
    a = request(transformer(), ["bird", "cat", "bird"]).numbers
    b = request(transformer(12), ["bird", "bird"]).numbers
    assert a[[0, 2]].tolist() == b.tolist() and a[2] == a[0] + 1 and 0 <= a.min() < 2**32
    assert sample_numbers(np.array([3, 0, 3])).tolist() == [3 << 20, 0, (3 << 20) + 1]


@pytest.mark.parametrize(
    "of_text, what, options, message",
    [
        (True, [3], {}, "conditioned on text, got 3; ask for texts such as"),
        (True, ["a\0"], {}, r"The prompt 'a\\x00' holds the control character U\+0000"),
        (True, ["a"], {"negative": ["b", "c"]}, "1 prompts came with 2 negative ones"),
        (True, ["a"], {"count": 2}, "2 images came with 1 texts"),
        (False, ["a"], {}, "conditioned on classes, got 'a'; ask for their numbers"),
        (False, [5], {}, r"Labels must lie in 0\.\.4"),
        (False, [1], {"negative": "a"}, "a negative prompt needs text"),
    ],
)
def test_mistakes_are_sentences(of_text, what, options, message):
    changes = {} if of_text else dict(conditioner=None, cross_attention=False)
    with pytest.raises(ValueError, match=message):
        request(transformer(**changes), what, **options)


def test_what_cannot_be_read_is_said():
    for length in (0, 513):
        with pytest.raises(ValueError, match=f"caption_length is {length}, but a model of capt"):
            encoder(length)
    with pytest.raises(ValueError, match="conditioned on captions, not on classes"):
        encoder().check(np.arange(3))
    with pytest.raises(ValueError, match=r"caption must be \[n, 8\], got \[3, 6\]"):
        encoder().check(prompts(length=6))
