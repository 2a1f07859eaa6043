import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from untrained import write_model

from var_jax import build
from var_jax.decoding.images import ImageSampler
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.train.metrics import read_metrics
from var_jax.transformer.cache import Cache
from var_jax.transformer.class_names import ClassNames
from var_jax.transformer.var import VAR

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3))
NAMES = ("on", "no", "zéro", "three")


def filled(params):
    """Parameters that differ from zero everywhere."""
    params, rng = sharding.unbox(params), np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), params)


@functools.cache
def condition_params(max_length=0):
    names = ClassNames(NAMES, len(NAMES), 16, max_length=max_length)
    return filled(jax.eval_shape(names.init, jax.random.key(0), jnp.zeros(1, int))["params"])


def condition(params, given, keys=None, **changes):
    names = ClassNames(NAMES, len(NAMES), 16, **changes)
    return jax.jit(lambda p, g, k: names.apply({"params": p}, g, k))(params, given, keys)


def test_the_bytes_of_a_name_are_its_tokens():
    bytes_, there = ClassNames(NAMES, len(NAMES), 16).table()
    assert bytes_[2][there[2]].tolist() == list("zéro".encode())
    assert there.sum(1).tolist() == [2, 2, 5, 5, 1]
    # The empty name is a token that no byte is.
    assert bytes_[-1, 0] not in bytes_[:-1]


def test_padding_changes_nothing():
    wide = condition_params(max_length=9)
    narrow = {**wide, "byte_position": wide["byte_position"][:5]}
    given = jnp.arange(5)
    long, short = condition(wide, given, max_length=9), condition(narrow, given)
    np.testing.assert_allclose(long.vector, short.vector, atol=1e-6)
    assert not long.mask[:, 5:].any()
    np.testing.assert_allclose(long.tokens[:, :5], short.tokens, atol=1e-6)


def test_the_order_of_the_letters_reaches_the_vector():
    found = condition(condition_params(), jnp.arange(2)).vector
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_dropout_takes_whole_names_by_the_example():
    given, keys = jnp.arange(32) % 4, jax.random.split(jax.random.key(0), 32)
    params = condition_params()
    found = condition(params, given, keys, drop_rate=0.5)
    null = condition(params, jnp.full(32, len(NAMES)))
    kept = condition(params, given)
    dropped = np.abs(found.vector - null.vector).max(1) < 1e-6
    assert 4 < dropped.sum() < 28
    for row, gone in enumerate(dropped):
        expected = null if gone else kept
        np.testing.assert_allclose(found.tokens[row], expected.tokens[row], atol=1e-6)
        np.testing.assert_array_equal(found.mask[row], expected.mask[row])
    alone = condition(params, given[5:6], keys[5:6], drop_rate=0.5)
    np.testing.assert_allclose(alone.vector[0], found.vector[5], atol=1e-6)


def transformer(**changes):
    settings = dict(depth=2, width=16, num_heads=2, cross_attention=True)
    settings["conditioner"] = ClassNames(NAMES, len(NAMES), 16)
    return VAR(PYRAMID, 4, code_dim=3, **{**settings, **changes})


@functools.cache
def transformer_params():
    inputs = jnp.zeros((1, PYRAMID.length, 3))
    shapes = jax.eval_shape(transformer().init, jax.random.key(0), inputs, jnp.zeros(1, int))
    return filled(shapes["params"])


def inputs(batch):
    shape = (batch, PYRAMID.length, 3)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def hidden(x, given):
    apply = jax.jit(lambda p, x, g: transformer().apply({"params": p}, x, g)[0])
    return apply(transformer_params(), x, given)


def test_level_by_level_with_a_cache_is_teacher_forcing():
    x, given = inputs(3), jnp.array([0, 2, 4])
    whole = hidden(x, given)

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

    np.testing.assert_allclose(stepped(transformer_params(), x), whole, atol=2e-5)


def test_an_example_does_not_hang_on_its_batch_and_reads_its_name():
    x = inputs(3)
    whole = hidden(x, jnp.array([0, 2, 4]))
    np.testing.assert_allclose(hidden(x[1:2], jnp.array([2]))[0], whole[1], atol=2e-5)
    other = hidden(x, jnp.array([1, 2, 4]))
    assert np.abs(other[0] - whole[0]).max() > 1e-3
    np.testing.assert_allclose(other[1:], whole[1:], atol=2e-5)


def test_with_nothing_to_read_it_is_var_with_the_names_vectors_as_embeddings():
    params, x, given = transformer_params(), inputs(3), jnp.array([0, 2, 4])
    blocks = dict(params["blocks"])
    read = blocks.pop("cross_attention")
    silent = {**read, "out": jax.tree.map(jnp.zeros_like, read["out"])}
    silent = {**params, "blocks": {**blocks, "cross_attention": silent}}
    ours = {name: params[name] for name in params if name.startswith("byte_")}
    plain = {name: params[name] for name in params.keys() - ours.keys()}
    plain |= {"blocks": blocks, "class_embedding": condition(ours, jnp.arange(5)).vector}

    def run(params, **changes):
        module = transformer(**changes)
        return jax.jit(lambda p: module.apply({"params": p}, x, given)[0])(params)

    expected = run(plain, conditioner=None, cross_attention=False)
    np.testing.assert_allclose(run(silent), expected, atol=2e-5)
    assert np.abs(run(params) - expected).max() > 1e-3


def test_only_cross_attention_and_the_names_add_parameters():
    def names(module):
        x = jnp.zeros((1, PYRAMID.length, 3))
        params = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1, int))["params"]
        paths = jax.tree_util.tree_flatten_with_path(sharding.unbox(params))[0]
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths}

    plain = names(transformer(conditioner=None, cross_attention=False))
    text = names(transformer())
    assert plain - text == {"class_embedding"}
    found = {name.split("/")[-1 if name.startswith("byte_e") else 0] for name in text - plain}
    assert found == {"byte_embedding", "byte_position", "byte_mlp", "blocks"}
    assert all("cross_attention" in n for n in text - plain if n.startswith("blocks"))


def test_mistakes_are_named():
    names = ClassNames(NAMES, len(NAMES), 16)
    names.check(np.array([0, 4]))
    with pytest.raises(ValueError, match="0..4"):
        names.check(np.array([5]))
    with pytest.raises(ValueError, match="longest name has 5"):
        ClassNames(NAMES, len(NAMES), 16, max_length=4)
    with pytest.raises(ValueError, match="not empty"):
        ClassNames(("a", ""), 2, 16)
    with pytest.raises(ValueError, match="There are 2 names, but the model has 3 classes"):
        ClassNames(("a", "b"), 3, 16)


@pytest.mark.slow
def test_the_smallest_config_trains(tmp_path):
    write_model(tmp_path / "model")
    config = load("family/class_names", "smallest")
    config.tokenizer_checkpoint = str(tmp_path / "model" / "tokenizer")
    assert build.run(config, tmp_path / "run", "transformer")
    lines = read_metrics(tmp_path / "run")
    losses = [line["loss_mean"] for line in lines if "loss_mean" in line]
    assert losses and np.isfinite(losses).all()

    loaded = build.load_transformer(tmp_path / "run")
    out = loaded.params["transformer"]["blocks"]["cross_attention"]["out"]["kernel"]
    assert np.abs(out).max() > 0, "Cross-attention starts as zeros and learns."
    tokenizer = loaded.tokenizer
    sampler = ImageSampler(
        loaded.network, tokenizer.module, tokenizer.params, build.decoder(loaded.config)
    )
    with pytest.raises(ValueError, match="0..10"):
        sampler(loaded.params, np.array([11]), 0, np.arange(1))


def test_the_full_size_config_builds():
    config = load("family/class_names", "d16")
    build.check_config(config)
    params = jax.eval_shape(build.network(config).init_params, jax.random.key(0))
    assert params["transformer"]["byte_position"].unbox().shape == (30, 1024)
