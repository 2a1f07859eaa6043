import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from stub_extractor import StubExtractor

from var_jax.evaluation.generated import references
from var_jax.evaluation.generated.npz_images import as_rgb
from var_jax.evaluation.generated.summary import summarise
from var_jax.evaluation.reconstructed.text_preservation import score_text
from var_jax.evaluation.reconstructed.tokenizer_report import TextPart, write_report
from var_jax.evaluation.reconstructed.tokenizer_scores import TokenizerRunner, score_tokenizer
from var_jax.fields import Field
from var_jax.pyramid import ScalePyramid

SIZE = 16
PYRAMID = ScalePyramid.from_patch_nums((4, SIZE))


class PixelTokenizer:
    """Level 0 has the means of 4 x 4 pixels, level 1 the pixels themselves: an exact copy."""

    codec = types.SimpleNamespace(pyramid=PYRAMID, target=Field("tokens", (), num_values=256))
    image_shape = (SIZE, SIZE, 1)
    dtype = jnp.float32

    def __init__(self, loss: int = 1):
        self._loss = loss  # Grey values are rounded to multiples of it.

    def apply(self, variables, x, method):
        del variables
        return getattr(self, method)(x)

    def encode(self, images):
        pixels = jnp.rint((images[..., 0] + 1) * 127.5).astype(jnp.int32)
        pixels = pixels // self._loss * self._loss
        coarse = pixels.reshape(-1, 4, 4, 4, 4).mean((2, 4)).astype(jnp.int32)
        return jnp.concatenate([coarse.reshape(-1, 16), pixels.reshape(-1, SIZE**2)], 1)

    def decode_levels(self, tokens):
        coarse, fine = PYRAMID.split(tokens)
        coarse = jnp.repeat(jnp.repeat(coarse.reshape(-1, 4, 4, 1), 4, 1), 4, 2)
        return jnp.stack([coarse, fine.reshape(-1, SIZE, SIZE, 1)]) / 127.5 - 1

    def decode_tokens(self, tokens):
        return self.decode_levels(tokens)[-1]


IMAGES = np.random.default_rng(0).integers(0, 256, (22, SIZE, SIZE, 1), np.uint8)


def batches():
    yield IMAGES[:9]
    yield IMAGES[9:]


@pytest.fixture(scope="module")
def copy():
    runner = TokenizerRunner(PixelTokenizer(), {}, batch_size=8)
    scores, examples = score_tokenizer(
        runner, batches(), StubExtractor(SIZE), num_level_images=12, num_examples=5
    )
    return runner, scores, examples


def test_an_exact_copy_has_distance_zero(copy):
    _, scores, examples = copy
    assert abs(scores.rfid) < 1e-3 and abs(scores.rsfid) < 1e-3
    assert scores.inception_score == pytest.approx(scores.inception_score_original)
    assert scores.num_images == 22 and scores.psnr == 100
    assert scores.ssim == pytest.approx(1, abs=1e-5)
    assert scores.edge_error == scores.high_frequency_error == 0
    np.testing.assert_array_equal(examples.reconstructions, IMAGES[:5])
    np.testing.assert_array_equal(examples.originals, IMAGES[:5])
    np.testing.assert_array_equal(examples.levels[1], IMAGES[:5])
    assert examples.levels.shape == (2, 5, SIZE, SIZE, 1)


def test_levels_and_codes(copy):
    _, scores, _ = copy
    assert scores.num_level_images == 12
    means = IMAGES[:12].reshape(-1, 4, 4, 4, 4).mean((2, 4)).astype(int)
    error = (np.kron(means, np.ones((4, 4))) - IMAGES[:12, ..., 0]) / 255
    expected = (-10 * np.log10((error**2).mean((1, 2)))).mean()
    np.testing.assert_allclose(scores.psnr_by_levels, [expected, 100], rtol=1e-5)
    counts = np.bincount(IMAGES.reshape(-1), minlength=256) / IMAGES.size
    assert scores.code_usage[1] == scores.codebook_usage == (counts > 0).mean()
    present = counts[counts > 0]
    entropy = -(present * np.log(present)).sum()
    np.testing.assert_allclose(scores.code_perplexity[1], np.exp(entropy), rtol=1e-6)


def test_a_lossy_one_is_scored_against_the_originals_or_a_reference_of_them(tmp_path):
    runner = TokenizerRunner(PixelTokenizer(loss=64), {}, batch_size=8)
    extractor = StubExtractor(SIZE)
    scores, _ = score_tokenizer(runner, batches(), extractor, num_level_images=2)
    assert scores.rfid > 0.01 and 10 < scores.psnr < 25 and scores.ssim < 0.99
    path = str(tmp_path / "r.npz")
    references.make_reference(path, batches(), len(IMAGES), {"image_size": SIZE}, extractor)
    reference = references.read_reference(path, extractor, keep_features=False)
    again, _ = score_tokenizer(runner, batches(), extractor, reference, num_level_images=2)
    assert again.rfid == pytest.approx(scores.rfid, rel=1e-6)
    own = summarise([as_rgb(IMAGES)], extractor)
    np.testing.assert_allclose(reference.pool.mean, own.pool.mean, rtol=1e-6)


def test_the_report_has_everything_in_both_forms(copy, tmp_path):
    runner, scores, examples = copy
    text = TextPart(
        *score_text(lambda x: runner(x)[0], (SIZE, SIZE, 1), sizes=(4,), num_pictures=2), None
    )
    assert text.scores[0].letters_kept == 1
    manifest = {"source": "noise", "split": "val", "crop": "none", "tokenizer_fingerprint": "f"}
    shown = write_report(tmp_path, scores, examples, text, PYRAMID.shapes, manifest)
    assert json.loads((tmp_path / "scores.json").read_text()) == shown
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    remarks = " ".join(shown["remarks"])
    assert "No OCR package" in remarks and "no LPIPS" in remarks and "22 images" in remarks
    markdown = (tmp_path / "report.md").read_text()
    html = (tmp_path / "report.html").read_text()
    for part in ("rfid", "perplexity", "letters_kept", "16x16", "No OCR package", "noise (val)"):
        assert part in markdown and part in html
    pictures = sorted(file.name for file in tmp_path.glob("*.png"))
    assert len(pictures) == 4 == html.count("data:image/png;base64,")
    assert all(f"({name})" in markdown for name in pictures)


def test_without_inception_it_says_so(copy, tmp_path):
    runner, *_ = copy
    scores, examples = score_tokenizer(runner, batches(), num_level_images=2)
    assert scores.rfid is None
    shown = write_report(tmp_path, scores, examples, None, PYRAMID.shapes, {})
    assert shown["text"] is None and shown["rfid"] is None
    assert "Without Inception weights (--inception) there is no rFID." in shown["remarks"]
    with pytest.raises(ValueError, match="at least 2 images, and there are 1"):
        score_tokenizer(runner, [IMAGES[:1]])
