"""Images through the tokenizer of a checkpoint, against the official outputs of case b."""

import json
import pathlib

import numpy as np
import pytest
from commands import import_command
from ml_collections import ConfigDict

from var_jax.build.loading import LoadedTokenizer
from var_jax.convert import official, vqvae
from var_jax.convert.lazy_state import LazyState, LazyTensor
from var_jax.convert.mapping import read
from var_jax.evaluation.generated.image_files import open_images
from var_jax.pixels import to_uint8

command = import_command("launch.reconstruct")

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "b"


@pytest.fixture(scope="module")
def tokenizer():
    fill = {}
    exec((GOLDEN.parent / "fill.py").read_text(), fill)
    state = LazyState(
        "vae",
        {
            name: LazyTensor(tuple(s), np.dtype(np.float32), lambda n=name, s=s: fill["fill"](n, s))
            for name, s in json.loads((GOLDEN / "vae_layout.json").read_text())
        },
    )
    module = official.build_tokenizer(vqvae.infer(state, (1, 2, 4)))
    slots = official.tokenizer_slots(module)
    params = read(state, slots, official.abstract_tokenizer(module))
    return LoadedTokenizer(module, params, fingerprint="", config=ConfigDict())


@pytest.fixture(scope="module")
def outputs():
    return dict(np.load(GOLDEN / "outputs.npz"))


def stored(path, images, value_range=None):
    np.save(path, images)
    return open_images(path, value_range)


def test_float_images(tokenizer, outputs, tmp_path):
    images = outputs["image"].transpose(0, 2, 3, 1)
    # Batches of two leave one picture over, which is filled up.
    file = stored(tmp_path / "a.npy", images, "-1..1")
    made, tokens, psnr = command.reconstruct(tokenizer, file, batch_size=2)
    expected = outputs["reconstruction"].transpose(0, 2, 3, 1)
    assert made.dtype == np.float32 and np.abs(made - expected).max() < 1e-4
    levels = [outputs[f"tokens_{k}"] for k in range(3)]
    np.testing.assert_array_equal(tokens, np.concatenate(levels, 1))
    error = np.square((expected - images) / 2).mean((1, 2, 3))
    np.testing.assert_allclose(psnr, -10 * np.log10(error), rtol=1e-4)
    # The same pictures in another range: the same codes, the same picture in that range.
    for value_range, low, high in (("0..1", 0, 1), ("0..255", 0, 255)):
        moved = (images + 1) / 2 * (high - low) + low
        file = stored(tmp_path / "b.npy", moved.astype(np.float32), value_range)
        again, codes, same = command.reconstruct(tokenizer, file, batch_size=2)
        assert (codes == tokens).mean() > 0.99
        np.testing.assert_allclose(again / (high - low) * 2 - 1, made, atol=1e-2)
        np.testing.assert_allclose(same, psnr, rtol=1e-2)


def test_uint8_images(tokenizer, outputs, tmp_path):
    images = to_uint8(outputs["image"].transpose(0, 2, 3, 1))
    file = stored(tmp_path / "a.npy", images)
    made, tokens, psnr = command.reconstruct(tokenizer, file, batch_size=3)
    assert (made.dtype, tokens.dtype, psnr.dtype) == (np.uint8, np.int32, np.float32)
    error = np.square((made.astype(float) - images) / 255).mean((1, 2, 3))
    np.testing.assert_allclose(psnr, -10 * np.log10(error), rtol=1e-4)


def test_images_of_another_size(tmp_path):
    images = stored(tmp_path / "a.npy", np.zeros((1, 3, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"holds images \[1, 3, 8, 3\], but .* \[N, 8, 8, 3\]"):
        command.check(images, (8, 8, 3))
