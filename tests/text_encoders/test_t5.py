"""T5's encoder against `transformers`, and texts on their way through it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import t5_folder
from t5_folder import GOLDENS, PIECES

from var_jax.convert import safetensors_file
from var_jax.convert.torch_file import open_state
from var_jax.text_encoders import t5
from var_jax.text_encoders.encoder import T5Encoder


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
def test_it_gives_what_transformers_gives(name):
    outputs = dict(np.load(GOLDENS / name / "outputs.npz"))
    settings, params = t5.read(GOLDENS / name, jnp.float32)
    there = np.arange(outputs["ids"].shape[1]) < outputs["lengths"][:, None]
    found = t5.encode(settings, params, outputs["ids"], there)
    np.testing.assert_allclose(found[there], outputs["features"][there], atol=1e-5)
    # Neither how far a text is padded nor with what changes anything.
    padded = np.pad(np.where(there, outputs["ids"], 7), ((0, 0), (0, 5)), constant_values=3)
    again = t5.encode(settings, params, padded, np.pad(there, ((0, 0), (0, 5))))
    np.testing.assert_allclose(again[:, :20][there], found[there], atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return t5_folder.write(tmp_path_factory.mktemp("t5") / "flan")


def test_texts_become_features(folder, caplog):
    encoder = T5Encoder(str(folder))
    texts = ["a red bird", "", "a red bird", "a  red\tbird", "a green bird"]
    features, lengths = encoder(texts, 6)
    assert features.shape == (5, 6, 16) and lengths.tolist() == [4, 1, 4, 4, 4]
    np.testing.assert_array_equal(features[0], features[2])
    np.testing.assert_array_equal(features[0], features[3])
    assert not features[0, 4:].any() and np.abs(features[0, :4] - features[4, :4]).max() > 0.1
    alone, _ = encoder(["a red bird"], 12)
    np.testing.assert_array_equal(alone[0, :4], features[0, :4])
    settings, params = t5.read(folder, jnp.float32)
    ids = np.array([[*map(PIECES.index, ("▁a", "▁red", "▁bird")), 1]])
    expected = t5.encode(settings, params, ids, np.ones((1, 4), bool))
    np.testing.assert_allclose(features[0, :4], expected[0], atol=1e-5)
    assert "tokens" not in caplog.text
    cut, lengths = encoder(["a red red red red bird"], 4)
    assert lengths.tolist() == [4] and "has 7 tokens, of which this model reads 4" in caplog.text
    with pytest.raises(ValueError, match=r"holds the control character U\+0007"):
        encoder(["a\a"], 4)


def test_weights_in_parts_and_beside_others_are_read(folder, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(folder, parts)
    with open_state(str(folder)) as state:
        tensors = {name: tensor.read() for name, tensor in state.items()}
    (parts / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in halves.items():
        more = (
            {"decoder.final_layer_norm.weight": np.ones(16, np.float32)} if "1-of" in file else {}
        )
        safetensors_file.write(parts / file, {n: tensors[n] for n in held} | more)
    index = {name: file for file, held in halves.items() for name in held}
    index["decoder.final_layer_norm.weight"] = "model-00001-of-00002.safetensors"
    (parts / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (parts / "pytorch_model.bin").write_bytes(b"of another library, not opened")
    for one, other in zip(
        *(T5Encoder(str(x))(["a bird"], 4) for x in (folder, parts)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type="clip"), "it is of a 'clip'"),
        (dict(feed_forward_proj="gated-silu"), "its MLPs are 'gated-silu'"),
        (dict(num_heads=3), r"blocks/k is \[2, 16, 8\], not \[2, 16, 12\]"),
        (dict(num_layers=3), "has no encoder.block.2.layer.0"),
        (dict(feed_forward_proj="relu"), "has no encoder.block.0.layer.1.DenseReluDense.wi.weight"),
    ],
)
def test_what_is_no_t5_is_named(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "t5")
    path = tmp_path / "t5" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        t5.read(tmp_path / "t5", jnp.float32)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of a text encoder"):
        T5Encoder(str(tmp_path / "none"))(["a"], 4)
    shutil.copytree(folder, tmp_path / "t5")
    (tmp_path / "t5" / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        T5Encoder(str(tmp_path / "t5"))(["a"], 4)
