"""Editing over small models: its limits are reconstruction and plain generation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_network
from small_network import CODE_DIM, CODEC, PYRAMID, model

from var_jax.decoding.edit_rules import Forced, Refit, Relabel, blend
from var_jax.decoding.editing import Editing, Source, replaced
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling

COUNT, LEVELS = 6, PYRAMID.num_levels
ROWS = np.arange(COUNT)
LABELS = ROWS % 3
PLAIN = NextScale(LinearGuidance(2.0), CategoricalSampling(0, 0.9))
RULES = [Forced(), Refit(), Relabel()]
NOTHING, ALL = np.zeros(PYRAMID.grid, np.float32), np.ones(PYRAMID.grid, np.float32)
LEFT = np.repeat([[1, 1, 0, 0]], 4, 0).astype(np.float32)


@functools.cache
def features():
    return 0.15 * np.random.default_rng(3).normal(size=(COUNT, *PYRAMID.grid, CODE_DIM))


@functools.cache
def codec_params():
    """Under which levels add up to something near the features, as they do after training."""
    params = dict(small_network.codec_params())
    kernel = np.zeros_like(params["phi_kernel"])
    kernel[:, 1, 1] = np.eye(CODE_DIM)
    return {**params, "phi_kernel": kernel, "phi_bias": np.zeros_like(params["phi_bias"])}


def source(keep, labels=LABELS, shown=LABELS):
    keep = np.broadcast_to(keep, (COUNT, *PYRAMID.grid))
    return jax.tree.map(jnp.asarray, Source(labels, features().astype(np.float32), keep, shown))


@functools.cache
def program(decoder):
    net, _ = model(1)

    @jax.jit
    def run(params, frozen, given, keys):
        return decoder(net, params, CODEC, frozen, given, keys, keep_partial=True)

    return run


def edit(rule, keep, given=None, rows=ROWS, sampling=PLAIN.sampling, **settings):
    """What editing makes of these rows of the source, as NumPy arrays."""
    decoder = Editing(rule, guidance=PLAIN.guidance, sampling=sampling, **settings)
    given = source(keep) if given is None else given
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), ROWS)
    given, keys = jax.tree.map(lambda x: x[rows], (given, keys))
    return jax.tree.map(np.asarray, program(decoder)(model(1)[1], codec_params(), given, keys))


@functools.cache
def plain():
    net, params = model(1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), ROWS)
    run = jax.jit(lambda params, frozen: PLAIN(net, params, CODEC, frozen, LABELS, keys))
    return jax.tree.map(np.asarray, run(params, codec_params()))


@functools.cache
def reconstruction():
    """Tokens and features of the pictures."""

    @jax.jit
    def run(params, features):
        tokens = CODEC.apply({"params": params}, features, method="encode")
        return tokens, CODEC.apply({"params": params}, tokens, method="decode")

    return jax.tree.map(np.asarray, run(codec_params(), features().astype(np.float32)))


@pytest.mark.parametrize("rule", RULES)
def test_keeping_all_is_reconstruction(rule):
    tokens, expected = reconstruction()
    made = edit(rule, ALL)
    np.testing.assert_array_equal(made.targets, tokens)
    np.testing.assert_allclose(made.features, expected, atol=1e-5)


def test_keeping_nothing_is_plain_generation():
    made = edit(Refit(), NOTHING)
    np.testing.assert_array_equal(made.targets, plain().targets)
    np.testing.assert_array_equal(made.features, plain().features)
    # VAR's rule keeps the first level in any case.
    tokens, _ = reconstruction()
    forced = edit(Forced(), NOTHING)
    np.testing.assert_array_equal(forced.targets[:, 0], tokens[:, 0])
    assert (forced.targets[:, 1:] != tokens[:, 1:]).any(1).all()
    same = edit(Forced(), NOTHING, level=1)
    np.testing.assert_array_equal(forced.targets, same.targets)


@pytest.mark.parametrize("level", range(LEVELS + 1))
def test_levels_before_the_first_drawn_one_are_the_pictures(level):
    tokens, expected = reconstruction()
    made, start = edit(Refit(), NOTHING, level=level), PYRAMID.offsets[level]
    np.testing.assert_array_equal(made.targets[:, :start], tokens[:, :start])
    assert len(made.partial) == LEVELS
    if level == 0:
        np.testing.assert_array_equal(made.targets, plain().targets)
    elif level == LEVELS:
        np.testing.assert_allclose(made.features, expected, atol=1e-5)
    else:
        assert (made.targets[:, start:] != tokens[:, start:]).any(1).all()


def test_what_is_drawn_hangs_on_the_levels_before_and_on_the_label():
    made = edit(Refit(), NOTHING, level=1).targets
    assert (made[:, 1:] != plain().targets[:, 1:]).any()
    other = edit(Refit(), NOTHING, source(NOTHING, labels=(LABELS + 1) % 3), level=1).targets
    assert (made[:, 1:] != other[:, 1:]).any()


@pytest.mark.parametrize("feather", [0.0, 1.0])
def test_the_kept_part_is_exact_and_the_new_part_is_new(feather):
    _, expected = reconstruction()
    made = edit(Refit(feather=feather), LEFT)
    np.testing.assert_array_equal(made.features[:, :, :2], expected[:, :, :2])
    new = np.abs(made.features[:, :, 2:] - expected[:, :, 2:]).max((1, 2, 3))
    assert (new > 0.05).all()


def test_encoding_anew_comes_nearer_to_the_kept_part_than_the_pictures_own_tokens():
    """Before anything is blended; as near as encoding the whole picture comes."""
    wanted = features()[:, :, :2]

    def error(found):
        return np.square(found[:, :, :2] - wanted).mean()

    forced, refit = (error(edit(rule, LEFT).partial[-1]) for rule in (Forced(), Refit(0.5)))
    whole = error(reconstruction()[1])
    assert refit < 1.05 * whole < 1.1 * whole < forced


@pytest.mark.parametrize("rule", RULES)
def test_an_example_is_the_same_in_any_batch(rule):
    rows = np.array([4, 1, 1, 5, 0, 4])
    whole, part = (edit(rule, LEFT, rows=x, candidates=3) for x in (ROWS, rows))
    np.testing.assert_array_equal(whole.targets[rows], part.targets)


def test_of_several_candidates_the_one_that_fits_best_is_taken():
    """Its kept tokens are the likeliest; the first candidate is what is drawn alone."""
    one, many = edit(Refit(), LEFT), edit(Refit(), LEFT, candidates=3)
    scores = [misfit(x.targets) for x in (one, many)]
    assert (scores[1] <= scores[0] + 1e-4).all() and (scores[1] < scores[0] - 0.1).any()


def misfit(tokens):
    """Negative log likelihood of the tokens of the kept part."""
    net, params = model(1)

    @jax.jit
    def run(params, frozen, tokens):
        lesson = CODEC.apply({"params": frozen}, tokens, method="lesson")
        hidden, _ = net.hidden(params, lesson.inputs, jnp.asarray(LABELS))
        return net.loss(params, hidden, tokens, None, PYRAMID)[1]["loss"]

    kept = np.concatenate([[False], [True, False] * 2, [True, True, False, False] * 4])
    return np.asarray(run(params, codec_params(), tokens))[:, kept].sum(1)


def test_relabelling_draws_what_speaks_for_the_old_label():
    """Without another label nothing does, and by a margin of 1 nothing can."""
    tokens, _ = reconstruction()
    same = edit(Relabel(1e-3, copied=1), NOTHING).targets  # Two ways of computing one number.
    np.testing.assert_array_equal(same, tokens)
    other = source(NOTHING, labels=(LABELS + 1) % 3)
    shares = []
    for margin in (1e-3, 1.0):
        made = edit(Relabel(margin, copied=1), NOTHING, other).targets
        np.testing.assert_array_equal(made[:, 0], tokens[:, 0])
        shares.append((made == tokens).mean())
    assert shares[0] < shares[1] == 1


def test_smooth_draws_are_replaced_too():
    smooth = CategoricalSampling(0, 0.9, smooth=True)
    made = edit(Refit(feather=0), ALL, sampling=smooth)
    np.testing.assert_allclose(made.partial[-1], reconstruction()[1], atol=1e-5)
    kept = np.array([[True, False]])
    drawn = np.full((1, 2, 3), 1 / 3, np.float32)
    code = replaced(kept, np.array([[2, 1]]), drawn)
    np.testing.assert_allclose(code, [[[0, 0, 1], [1 / 3] * 3]])


def test_a_blend_takes_nothing_from_what_is_not_kept_and_a_constant_difference_whole():
    rng = np.random.default_rng(0)
    made, wanted, other = rng.normal(size=(3, 1, 6, 6, 2)).astype(np.float32)
    keep = np.zeros((1, 6, 6), np.float32)
    keep[:, :, :3] = 1
    hidden = np.where(keep[..., None] > 0, wanted, other)
    found = blend(made, wanted, keep, 1.0)
    np.testing.assert_allclose(found, blend(made, hidden, keep, 1.0), atol=1e-6)
    moved = np.asarray(blend(made, made + 1, keep, 1.0)) - made
    np.testing.assert_array_equal(moved[:, :, :3] > 0.999, True)
    assert (np.diff(moved[0, 0, 2:, 0]) < 0).all() and moved[0, 0, 5, 0] < 0.05


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: edit(Refit(), ALL, level=4), "level is 4, but the pyramid has 3 levels"),
        (lambda: edit(Refit(), ALL, candidates=0), "candidates is 0"),
        (lambda: Refit(cover=0.0), r"cover is a share in \(0, 1\]"),
        (lambda: Refit(feather=-1.0), "feather is a number of cells"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_codec_that_cannot_encode_anew_is_named():
    class Plain:
        apply = CODEC.apply

    net, params = model(1)
    frozen = jax.tree.map(jnp.asarray, codec_params())
    keys = jax.random.split(jax.random.key(0), COUNT)
    with pytest.raises(ValueError, match="The codec Plain cannot encode what is left"):
        jax.eval_shape(
            lambda given: Editing(Refit())(net, params, Plain(), frozen, given, keys),
            source(ALL),
        )
