import numpy as np
import pytest

from var_jax.evaluation.reconstructed import text_preservation as text


@pytest.mark.parametrize("channels, background", [(3, 255), (1, 0)])
def test_the_nearest_glyph_reads_what_was_drawn(channels, background):
    pictures = text.render(12, (64, 64, channels), 3, background=background)
    assert pictures.images.shape == (3, 64, 64, channels)
    letters = "".join("".join(t.split()) for t in pictures.texts)
    assert len(pictures.letters) == len(letters) > 20
    read = text.read_letters(pictures.images, pictures)
    assert "".join(text.ALPHABET[i] for i in read) == letters
    # Nothing of it is left in a blank picture.
    blank = np.full_like(pictures.images, background)
    assert (text.read_letters(blank, pictures) == pictures.letters[:, 3]).mean() < 0.3


def test_the_same_seed_draws_the_same_words():
    one, two = (text.render(8, (32, 32, 1), 2, seed=s) for s in (0, 0))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.texts != text.render(8, (32, 32, 1), 2, seed=1).texts
    assert text.render(32, (32, 32, 1)) is None  # Not three letters in a line.


def test_scores_of_a_copy_and_of_a_blur():
    def blur(images):
        small = images.reshape(-1, 16, 4, 16, 4, 3).mean((2, 4))
        return np.kron(small, np.ones((1, 4, 4, 1))).astype(np.uint8)

    copies, examples = text.score_text(lambda x: x, (64, 64, 3), num_pictures=2)
    assert [s.size for s in copies] == [8, 12, 16] and len(examples) == 3
    assert all(s.psnr == text.MAX_PSNR and s.letters_kept == 1 for s in copies)
    assert all(s.edge_error == 0 and s.ocr is None for s in copies)
    blurred, _ = text.score_text(blur, (64, 64, 3), num_pictures=2)
    kept = [s.letters_kept for s in blurred]
    assert kept[0] < 0.9 and kept[0] <= kept[-1]
    assert all(s.psnr < 20 and s.edge_error > 0.1 for s in blurred)


def test_an_ocr_package_reads_originals_and_reconstructions():
    pictures = text.render(8, (32, 32, 1), 1)
    sizes = []

    def reader(image):
        sizes.append(image.shape)
        return pictures.texts[0].lower() if image.mean() > 150 else "?"

    (scores,), _ = text.score_text(
        lambda x: x // 2, (32, 32, 1), sizes=(8,), num_pictures=1, reader=reader
    )
    assert scores.ocr_original == 1 and scores.ocr < 0.2
    assert sizes == [(96, 96, 3)] * 2


def test_character_accuracy_is_one_minus_the_edit_distance():
    assert text.character_accuracy("fox\n jumps", "FOX JUMPS") == 1
    assert text.character_accuracy("FX JUMPZ", "FOX JUMPS") == pytest.approx(1 - 2 / 9)
    assert text.character_accuracy("", "FOX") == 0
    assert text.character_accuracy("A VERY LONG LINE", "FOX") == 0
