import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_network import CLASSES, CODEC, PYRAMID, filled, model

from var_jax.evaluation.likelihood_classifier import Cascade, classify, label_scores
from var_jax.tokenizer.vqvae import VQVAE

TOKENIZER = VQVAE(
    CODEC, 1, channels=8, multipliers=(1, 1), num_res_blocks=1, attention=False, norm_groups=4
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, *TOKENIZER.image_shape)).astype(np.float32)
FLAT = Cascade((3,), (CLASSES,))


@functools.cache
def tokenizer_params():
    return filled(TOKENIZER.init_params, 3)


def rank(cascade, images=IMAGES, seed=0):
    network, params = model()

    @jax.jit
    def run(params, frozen, images, keys):
        return classify(network, params, TOKENIZER, frozen, images, keys, cascade)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), np.arange(len(images)))
    return jax.tree.map(np.asarray, run(params, tokenizer_params(), images, keys))


@functools.cache
def by_label():
    """log p(tokens of each level | label), [images, labels, levels], by one whole pass a label."""
    network, params = model()

    @jax.jit
    def run(params, frozen, images, labels):
        source = TOKENIZER.apply({"params": frozen}, images, method="read")
        lesson = CODEC.apply({"params": frozen["codec"]}, source, method="lesson")
        hidden, _ = network.hidden(params, lesson.inputs, labels)
        loss = network.loss(params, hidden, lesson.targets, None, PYRAMID)[1]["loss"]
        return jnp.stack([-x.sum(1) for x in PYRAMID.split(loss)], 1)

    labels = [np.full(len(IMAGES), y, np.int32) for y in range(CLASSES)]
    return np.stack([run(params, tokenizer_params(), IMAGES, y) for y in labels], 1)


def test_one_stage_is_the_order_of_the_likelihoods():
    found, scores = rank(FLAT), by_label().sum(2)
    np.testing.assert_array_equal(found.labels, np.argsort(-scores, axis=1))
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1), rtol=1e-4)


@pytest.mark.parametrize("levels", [1, 2])
def test_the_score_of_some_levels_is_that_of_a_shorter_pass(levels):
    found = rank(Cascade((levels,), (CLASSES,)))
    scores = by_label()[:, :, :levels].sum(2)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1), rtol=1e-4)


def test_a_cascade_that_keeps_everything_is_flat():
    found, flat = rank(Cascade((1, 2, 3), (CLASSES, CLASSES, 1))), rank(FLAT)
    np.testing.assert_array_equal(found.labels, flat.labels[:, :1])
    np.testing.assert_allclose(found.scores, flat.scores[:, :1], rtol=1e-5)


def test_a_cascade_ranks_what_the_stage_before_kept():
    found, first = rank(Cascade((1, 3), (2, 2))), rank(Cascade((1,), (2,)))
    np.testing.assert_array_equal(np.sort(found.labels), np.sort(first.labels))
    chosen = np.take_along_axis(by_label().sum(2), found.labels, 1)
    np.testing.assert_allclose(found.scores, chosen, rtol=1e-4)


@pytest.mark.slow
def test_copies_without_noise_are_the_image_and_with_noise_are_the_images_own():
    still = rank(Cascade((3,), (CLASSES,), (3,), noise=0.0))
    np.testing.assert_allclose(still.scores, rank(FLAT).scores, rtol=1e-5)
    noisy = Cascade((3,), (CLASSES,), (3,), noise=1.0)
    found = rank(noisy)
    assert np.abs(found.scores - rank(FLAT).scores).max() > 0.1
    np.testing.assert_allclose(rank(noisy, IMAGES[:2]).scores, found.scores[:2], rtol=1e-4)


def test_labels_that_differ_by_image():
    network, params = model()
    source = TOKENIZER.apply({"params": tokenizer_params()}, IMAGES, method="read")
    lesson = CODEC.apply({"params": tokenizer_params()["codec"]}, source, method="lesson")
    labels = np.random.default_rng(1).integers(0, CLASSES, (len(IMAGES), 2)).astype(np.int32)
    found = label_scores(network, params, lesson, labels, 3)
    expected = np.take_along_axis(by_label().sum(2), labels, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "cascade, message",
    [
        (Cascade((3, 3), (1,)), "as many levels as"),
        (Cascade((4,)), "the model has 3 levels"),
        (Cascade((3,), (4,)), "keeps 4 of 3 labels"),
        (Cascade((1, 3), (1, 2)), "keeps 2 of 1 labels"),
        (Cascade((3,), noise=-1.0), "noise"),
    ],
)
def test_mistakes_are_named(cascade, message):
    with pytest.raises(ValueError, match=message):
        cascade.stages(3, CLASSES)
