import numpy as np
import pytest

from var_jax.evaluation.pictures import make_grid
from var_jax.evaluation.report import Report, curves
from var_jax.evaluation.small_sets.classifier import Classifier
from var_jax.evaluation.small_sets.small_set import (
    LabelledImages,
    code_statistics,
    score,
    within_class_deviation,
)
from var_jax.pixels import encode_png
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2))


def test_a_grid_holds_its_images_in_rows():
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)
    picture = make_grid(images, columns=2, padding=1)
    assert picture.shape == (7, 7, 1)
    np.testing.assert_array_equal(picture[1:3, 4:6], images[1])
    np.testing.assert_array_equal(picture[4:6, 1:3], images[2])
    assert (picture[4:6, 4:6] == 255).all()


def test_code_statistics_of_known_tokens():
    tokens = np.array([[0, 0, 0, 1, 1], [1, 0, 0, 1, 1]])
    usage, perplexity = code_statistics(tokens, PYRAMID, 4)
    np.testing.assert_allclose(usage, [0.5, 0.5])
    np.testing.assert_allclose(perplexity, [2.0, 2.0])
    usage, perplexity = code_statistics(np.zeros((3, 5), int), PYRAMID, 4)
    np.testing.assert_allclose(usage + perplexity, [0.25, 0.25, 1.0, 1.0])


def test_deviation_is_within_classes():
    images = np.zeros((4, 2, 2, 1), np.uint8)
    images[2:] = 255  # The classes differ, their members do not.
    labels = np.array([0, 0, 1, 1])
    assert within_class_deviation(LabelledImages(images, labels)) == 0
    images[0] = 255
    np.testing.assert_allclose(within_class_deviation(LabelledImages(images, labels)), 0.25)


class ByBrightness(Classifier):
    """Class 1 is bright; features are the mean and the deviation of an image."""

    def predict(self, images):
        x = images.reshape(len(images), -1) / 255.0
        bright = x.mean(1) > 0.5
        return np.stack([~bright, bright], 1).astype(float), np.stack([x.mean(1), x.std(1)], 1)


def test_scores_measure_what_their_names_say():
    rng = np.random.default_rng(0)

    def make(count, low=(0, 130)):
        labels = np.arange(count) % 2
        base = np.where(labels, low[1], low[0])[:, None, None, None]
        noise = rng.integers(0, 120, (count, 16, 16, 1))
        return LabelledImages((base + noise).astype(np.uint8), labels)

    train, held_out = make(200), make(100)
    wrong = LabelledImages(train.images, 1 - train.labels)
    settings = dict(
        classifier=ByBrightness(None, 2, 16),
        train=train,
        held_out=held_out,
        untrained=make(100, low=(60, 60)),
        reconstructed_train=train.images,
        reconstructed_held_out=np.clip(held_out.images.astype(int) + 10, 0, 255).astype(np.uint8),
        train_tokens=rng.integers(0, 4, (200, 5)),
        pyramid=PYRAMID,
        vocab_size=4,
    )
    good, bad = score(generated=train, **settings), score(generated=wrong, **settings)
    assert good.label_accuracy == good.classifier_accuracy_real == 1
    assert bad.label_accuracy == 0
    np.testing.assert_allclose(good.diversity, 1)
    assert good.frechet_distance == pytest.approx(good.frechet_distance_real, abs=1e-3)
    assert good.frechet_distance_untrained > 10 * good.frechet_distance
    assert good.reconstruction_psnr == pytest.approx(20 * np.log10(255 / 10), abs=0.1)
    assert set(good.to_json()) >= {"label_accuracy", "code_usage"}


def test_a_report_is_one_escaped_page():
    report = Report("A < B", "introduction")
    report.picture(encode_png(np.zeros((2, 2, 1), np.uint8)), "a 'caption'", width=10)
    report.picture(
        curves({"run": [{"step": 0, "loss": 1.0}, {"step": 1}]}, {"loss": "loss"}, "y"), "curve"
    )
    report.table(["a", "b"], [("x", 0.123456), ("y", 2)])
    report.preformatted("<script>")
    page = report.render()
    assert "A &lt; B" in page and "<script>" not in page and "0.1235" in page
    assert page.count("data:image/png;base64,") == 2
