import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import load
from small_network import CLASSES, CODEC, PYRAMID, codec_params, generate, model

from var_jax import build
from var_jax.decoding import selection
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.decoding.rewards import Candidates, FunctionReward, LikelihoodReward
from var_jax.decoding.search import Search
from var_jax.evaluation.small_sets.classifier import train_classifier
from var_jax.evaluation.small_sets.rewards import (
    ClassifierReward,
    FeatureDistanceReward,
    write_classifier,
)
from var_jax.heads.categorical import CategoricalSampling

LABELS = np.arange(8) % CLASSES
RULE, SAMPLING = LinearGuidance(1.0), CategoricalSampling(0, 0.0)


def search(candidates, reward=None, labels=LABELS, keep_partial=False, **settings):
    decoder = Search(candidates, reward, guidance=RULE, sampling=SAMPLING, **settings)
    return generate(decoder, labels, keep_partial=keep_partial)


@pytest.fixture(scope="module")
def plain():
    return generate(NextScale(RULE, SAMPLING), LABELS)


def constant(candidates):
    return jnp.zeros(len(candidates.features))


def brightness(candidates):
    return candidates.features.mean((1, 2, 3))


CONSTANT, BRIGHTNESS = (FunctionReward(f"{__name__}:{f.__name__}") for f in (constant, brightness))


def test_one_candidate_is_the_plain_draw(plain):
    found = search((1, 1, 1))
    np.testing.assert_array_equal(found.targets, plain.targets)
    np.testing.assert_array_equal(found.features, plain.features)


def test_a_constant_reward_keeps_the_plain_draw(plain):
    """Where the best go on: of equal ones the first, which draws by the example's own key."""
    for candidates in (3, (4, 2, 1)):
        found = search(candidates, CONSTANT, scale=None)
        np.testing.assert_array_equal(found.targets, plain.targets)


def test_the_best_of_n_is_never_worse_and_often_better(plain):
    found = search(4, BRIGHTNESS)
    gained = found.features.mean((1, 2, 3)) - plain.features.mean((1, 2, 3))
    assert (gained >= 0).all() and (gained > 0).mean() > 0.4


def test_an_example_is_the_same_in_any_batch():
    """With fewer and fewer candidates, drawn by a reward and by clusters."""
    settings = dict(cluster_levels=(1,), keep_partial=True)
    whole = search((5, 3, 2), BRIGHTNESS, **settings)
    part = search((5, 3, 2), BRIGHTNESS, labels=LABELS[:3], **settings)
    np.testing.assert_array_equal(whole.targets[:3], part.targets)
    np.testing.assert_allclose(whole.partial[-1], whole.features)
    assert len(whole.partial) == 3


def test_what_is_returned_is_what_was_drawn(plain):
    """Levels of one candidate belong together after it has been moved: the likelihood of the
    tokens that come back is the one that the reward saw."""
    net, params = model()
    seen = {}

    def spy(candidates):
        jax.debug.callback(lambda x: seen.setdefault("scores", np.asarray(x)),
                           candidates.log_likelihood)  # fmt: skip
        return candidates.log_likelihood

    decoder = Search((4, 4, 2), spy, guidance=RULE, sampling=SAMPLING, cluster_levels=(2,))
    found = generate(decoder, LABELS)
    jax.effects_barrier()

    @jax.jit
    def score(params, frozen, tokens):
        lesson = CODEC.apply({"params": frozen}, tokens, method="lesson")
        hidden, _ = net.hidden(params, lesson.inputs, jnp.asarray(LABELS, jnp.int32))
        return -net.loss(params, hidden, tokens, None, PYRAMID)[1]["loss"].sum(1)

    expected = score(params, codec_params(), found.targets)
    np.testing.assert_allclose(seen["scores"].reshape(-1, 2).max(1), expected, rtol=1e-4)


def test_a_large_scale_draws_the_best_and_none_draws_all_alike():
    worth = jnp.asarray([[0.1, 0.9, 0.3, 0.2]])
    uniform = jnp.asarray(np.random.default_rng(0).random((1, 4000)), jnp.float32)
    assert (np.asarray(selection.resampled(worth, 1e4, uniform)) == 1).all()
    counts = np.bincount(np.asarray(selection.resampled(worth, 0.0, uniform))[0], minlength=4)
    assert np.abs(counts / 4000 - 0.25).max() < 0.03
    expected = np.exp(2 * np.asarray(worth[0])) / np.exp(2 * np.asarray(worth)).sum()
    counts = np.bincount(np.asarray(selection.resampled(worth, 2.0, uniform))[0], minlength=4)
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)
    assert np.asarray(selection.best(worth, 2)).tolist() == [[1, 2]]


def test_representatives_stand_one_for_each_cluster():
    rng = np.random.default_rng(0)
    points = np.float32([[0, 0], [10, 0], [0, 10]])[[0, 1, 0, 2, 1, 2]]
    points = jnp.asarray(points + rng.normal(0, 0.1, points.shape), jnp.float32)
    found = np.asarray(selection.representatives(points, 3)).tolist()
    assert {(0, 2).count(i) for i in found} == {0, 1} and len(set(found)) == 3
    assert sorted([0, 1, 0, 2, 1, 2][i] for i in found) == [0, 1, 2]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of a classifier of dark and bright pictures."""
    file = tmp_path_factory.mktemp("rewards") / "classifier.npz"
    images = np.random.default_rng(0).uniform(-1, 0, (60, 8, 8, 1)).astype(np.float32)
    labels = np.arange(60) % 2
    images[labels == 1] += 1
    made = train_classifier(images, labels, num_classes=2, steps=20, width=4, shift=0)
    write_classifier(file, made, images, labels)
    return str(file), images[:2]


@pytest.mark.parametrize("reward", [ClassifierReward, FeatureDistanceReward])
def test_a_classifier_prefers_what_was_asked_for(classifier, reward):
    file, images = classifier
    made = reward(file)

    @jax.jit
    def scores(given):
        return made(Candidates(given, images, images, None))

    right, wrong, free = (np.asarray(scores(np.array(x))) for x in ([0, 1], [1, 0], [2, 2]))
    assert (right > wrong).all() and (free >= right).all()


def test_a_search_by_images_uses_what_decodes(classifier):
    decoder = Search(3, ClassifierReward(classifier[0]), guidance=RULE, sampling=SAMPLING)
    with pytest.raises(ValueError, match="no `decode`"):
        generate(decoder, LABELS % 2)

    def decode(features):
        return 0.1 * features[..., :1].repeat(2, 1).repeat(2, 2)

    found = generate(decoder, LABELS % 2, decode=decode)
    assert found.targets.shape == (8, PYRAMID.length)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(candidates=(1, 2, 2), reward=CONSTANT), "do not grow"),
        (dict(candidates=(2, 1), reward=CONSTANT), "one for each level"),
        (dict(candidates=0), "1 or more"),
        (dict(candidates=2), "nothing to choose them by"),
        (dict(candidates=(2, 1, 1), cluster_levels=(2,), reward=CONSTANT), "has 2, where"),
        (dict(candidates=1, cluster="dino"), "cluster of the search is 'dino'"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(**settings).counts(PYRAMID)


def test_a_missing_function_or_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="'nowhere:f', which cannot be imported"):
        FunctionReward("nowhere:f")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="has no classifier"):
        ClassifierReward(str(tmp_path / "other.npz"))


def test_the_config_builds():
    decoder = build.decoder(load("family/tts_var", "smallest"))
    assert isinstance(decoder, Search) and decoder.reward == LikelihoodReward()
    config = load("mnist5k")
    with config.unlocked():
        config.sampling.decoder = dict(kind="search", candidates=3)
        config.sampling.reward = dict(kind="function", function=BRIGHTNESS.function)
    assert build.decoder(config).reward == BRIGHTNESS
    with config.unlocked():
        config.sampling.decoder = dict(kind="next_scale")
    with pytest.raises(ValueError, match="reward is set, but .*'next_scale'"):
        build.decoder(config)
