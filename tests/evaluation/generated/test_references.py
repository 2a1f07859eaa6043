import numpy as np
import pytest
from stub_extractor import StubExtractor

from var_jax.data.transforms import ImageTransform
from var_jax.evaluation.generated import npz_images, references
from var_jax.evaluation.generated.summary import compare, summarise

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
ORIGIN = references.origin("mnist5k", "val", ImageTransform(8, 1, resize="pad", background=0))


def batches(size=7):
    return (IMAGES[i : i + size] for i in range(0, len(IMAGES), size))


def reconstructions(**changes):
    return {**ORIGIN, "kind": references.RECONSTRUCTIONS, **changes}


def test_crops_in_words():
    assert ORIGIN["crop"] == "padded to 8x8 with 0"
    photo = references.origin("tfds", "val", ImageTransform(256))
    assert photo["crop"] == "short side to 288 (Lanczos), central 256x256"
    assert (photo["source"], photo["split"], photo["image_size"]) == ("tfds", "val", 256)


def test_a_reference_holds_statistics_of_all_and_some_images(tmp_path):
    path, extractor = str(tmp_path / "r.npz"), StubExtractor()
    note = references.make_reference(path, batches(), 30, ORIGIN, extractor, max_images=10)
    assert (note["count"], note["images"]) == (30, 10)
    assert npz_images.read_note(path) == note
    np.testing.assert_array_equal(np.load(path)["arr_0"], IMAGES[::3])
    whole = summarise([npz_images.as_rgb(IMAGES)], extractor)
    found = references.read_reference(path, extractor)
    assert abs(compare(whole, found).fid) < 1e-3 and abs(compare(whole, found).sfid) < 1e-3
    assert found.count == 10
    assert [file.name for file in tmp_path.iterdir()] == ["r.npz"]


def test_without_features_all_images_are_kept_and_fewer_than_announced_are_fine(tmp_path):
    path = str(tmp_path / "r.npz")
    note = references.make_reference(path, batches(), 33, ORIGIN, None)
    assert (note["count"], note["images"]) == (30, 30)
    np.testing.assert_array_equal(np.load(path)["arr_0"], IMAGES)
    assert references.reference_size(path) == (8, 8)
    with pytest.raises(ValueError, match="at least 2 images"):
        references.make_reference(str(tmp_path / "one.npz"), [IMAGES[:1]], 1, ORIGIN, None)
    assert not list(tmp_path.glob("one*"))


def test_reconstructions_are_compared_with_the_same_crop_of_the_same_pictures_only(tmp_path):
    path = str(tmp_path / "r.npz")
    references.make_reference(path, batches(), 30, ORIGIN, None)
    references.check_comparable((8, 8), reconstructions(), path, "a.npz")
    references.check_comparable((8, 8), reconstructions(count=30), path, "a.npz")
    references.check_comparable((8, 8), {"kind": "samples"}, path, "a.npz")
    for changed in ({"split": "train"}, {"source": "folder"}, {"crop": "x"}, {"count": 29}):
        with pytest.raises(ValueError, match=f"with {next(iter(changed))} .* or give --allow_mis"):
            references.check_comparable((8, 8), reconstructions(**changed), path, "a.npz")
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(ValueError, match="does not say what it was made of"):
        references.check_comparable((8, 8), reconstructions(), tmp_path / "adm.npz", "a.npz")
    references.check_comparable((9, 9), {}, tmp_path / "adm.npz", "a.npz")
    with pytest.raises(ValueError, match="9x9 px, but the reference .* is of 8x8 px"):
        references.check_comparable((9, 9), {}, path, "a.npz")


def test_a_note_of_somebody_else_is_no_note(tmp_path):
    np.savez(tmp_path / "a.npz", IMAGES, note=np.array("hello"))
    assert npz_images.read_note(tmp_path / "a.npz") == {}
    np.savez(tmp_path / "b.npz", IMAGES)
    assert npz_images.read_note(tmp_path / "b.npz") == {}
