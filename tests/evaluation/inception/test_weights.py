import hashlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from var_jax.convert import safetensors_file
from var_jax.evaluation.inception.network import FEATURE_SIZES, FEATURES, Inception
from var_jax.evaluation.inception.weights import load_inception, save_inception

OUTPUTS = pathlib.Path(__file__).parents[2] / "goldens" / "inception" / "outputs.npz"


@pytest.mark.parametrize("case", ["small", "256"])
def test_golden_features(inception_weights, case):
    apply = jax.jit(lambda params, x: Inception().apply({"params": params}, x, FEATURES))
    with np.load(OUTPUTS) as outputs:
        images = outputs[f"{case}_images"].transpose(0, 2, 3, 1)
        found = apply(inception_weights.params, images)
        assert {name: value.shape for name, value in found.items()} == {
            name: (2, size) for name, size in FEATURE_SIZES.items()
        }
        for name in set(FEATURES) - {"spatial"}:
            expected = outputs[f"{case}_{name}"]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                found[name], expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name
            )


def test_weights_are_cached_with_the_hash_of_their_file(inception_path, tmp_path):
    cache = tmp_path / "inception.npz"
    weights = load_inception(inception_path, cache=str(cache))
    assert weights.sha256 == hashlib.sha256(inception_path.read_bytes()).hexdigest()
    assert not weights.published
    again = load_inception(str(cache))
    assert again.sha256 == weights.sha256
    jax.tree.map(np.testing.assert_array_equal, weights.params, again.params)
    # A cache of other weights is written anew.
    save_inception(cache, weights.replace(sha256="0" * 64))
    assert load_inception(inception_path, cache=str(cache)).sha256 == weights.sha256
    assert load_inception(str(cache)).sha256 == weights.sha256


def test_missing_wrong_and_foreign_weights(inception_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no Inception weights at .*download"):
        load_inception(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="does not begin with 0123456789"):
        load_inception(inception_path, sha256="0123456789")
    named = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    shutil.copy(inception_path, named)
    with pytest.raises(ValueError, match="does not begin with 6726825d"):
        load_inception(named)
    other = tmp_path / "other.safetensors"
    safetensors_file.write(other, {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="lacks .* names"):
        load_inception(other)
    np.savez(tmp_path / "other.npz", w=np.zeros(3))
    with pytest.raises(ValueError, match="not an npz of converted"):
        load_inception(tmp_path / "other.npz")
