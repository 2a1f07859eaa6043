import numpy as np
import pytest
from PIL import Image
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


STATISTICS = dict(mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(4), sigma_s=np.eye(4))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(mu=np.array([0, 0, np.nan, 0, 0, 0])), "mu of float64 .* no finite"),
        (dict(sigma=np.diag([1, 1, np.inf, 1, 1, 1])), "sigma of float64 .* no finite"),
        (dict(sigma_s=np.full((4, 4), np.nan)), "sigma_s of float64 .* no finite"),
        (dict(sigma=-np.eye(6)), "a variance is negative"),
        (dict(sigma=np.triu(np.ones((6, 6)))), "not symmetric"),
        (dict(sigma=np.eye(5)), r"\[6\] and sigma \[5, 5\]"),
        (dict(sigma=np.ones(36)), r"sigma \[36\]"),
        (dict(mu=np.zeros((1, 6))), r"mu \[1, 6\]"),
        (dict(mu=np.array(["a"] * 6)), "no finite numbers"),
        (dict(sigma=None), "'mu' without 'sigma'"),
        (dict(mu=None, arr_0=IMAGES), "'sigma' without 'mu'"),
        (dict(sigma_s=None), "'mu_s' without 'sigma_s'"),
        (dict(mu=None, sigma=None), "'mu_s' without 'mu'"),
    ],
)
def test_statistics_that_are_none_are_refused_before_the_work(tmp_path, changes, words):
    path = str(tmp_path / "r.npz")
    np.savez(path, **STATISTICS)
    references.check_reference(path)
    arrays = {k: v for k, v in (STATISTICS | changes).items() if v is not None}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words) as error:
        references.check_reference(path)
    assert "\n" not in str(error.value)


def test_names_of_ttur(tmp_path):
    rng = np.random.default_rng(0)
    mean, factor = rng.normal(size=6), rng.normal(size=(6, 6))
    np.savez(tmp_path / "r.npz", m=mean, s=factor @ factor.T)
    found = references.read_reference(str(tmp_path / "r.npz"), StubExtractor())
    np.testing.assert_array_equal(found.pool.mean, mean)
    np.testing.assert_array_equal(found.pool.covariance, factor @ factor.T)
    assert found.count == 0 and found.spatial is None
    np.savez(tmp_path / "r.npz", m=mean)
    with pytest.raises(ValueError, match="'m' without 's'"):
        references.check_reference(str(tmp_path / "r.npz"))


def test_a_reference_is_read_like_samples(tmp_path):
    extractor, folder = StubExtractor(), tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", images=IMAGES)
    np.save(tmp_path / "c.npy", IMAGES / 255)
    whole = summarise([npz_images.as_rgb(IMAGES)], extractor)
    for name, value_range in (
        ("pictures", None),
        ("a.npy", None),
        ("b.npz", None),
        ("c.npy", "0..1"),
    ):
        path = str(tmp_path / name)
        references.check_reference(path, value_range)
        found = references.read_reference(path, extractor, value_range=value_range)
        assert found.count == 30 and abs(compare(whole, found).fid) < 1e-3, name
        assert references.reference_size(path) == (8, 8)
        with pytest.raises(ValueError, match="9x9 px"):
            references.check_comparable((9, 9), {}, path, "a.npz")
    with pytest.raises(ValueError, match="--reference_value_range"):
        references.check_reference(str(tmp_path / "c.npy"))
