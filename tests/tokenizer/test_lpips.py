import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens.fill import fill

from var_jax.convert import safetensors_file
from var_jax.convert.lpips import load_lpips
from var_jax.tokenizer.lpips import LPIPS, normalise

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def outputs():
    with np.load(GOLDENS / "lpips" / "outputs.npz") as values:
        return dict(values)


@pytest.fixture(scope="module")
def params(tmp_path_factory, outputs):
    folder = tmp_path_factory.mktemp("lpips")
    layout = json.loads((GOLDENS / "lpips" / "vgg16_layout.json").read_text())
    vgg = {
        name: fill(name, shape) * np.float32(np.sqrt(2) if len(shape) >= 2 else 1)
        for name, shape in layout
    }
    linear = {f"lin{i}.model.1.weight": outputs[f"weight_lin{i}_model_1_weight"] for i in range(5)}
    safetensors_file.write(folder / "vgg.safetensors", vgg)
    safetensors_file.write(folder / "lin.safetensors", linear)
    return load_lpips(folder / "vgg.safetensors", folder / "lin.safetensors")


def test_golden_distances(params, outputs):
    x, y = (jnp.asarray(outputs[name].transpose(0, 2, 3, 1)) for name in "xy")
    distance = jax.jit(LPIPS().apply)({"params": params}, x, y)
    np.testing.assert_allclose(distance, outputs["lpips"].reshape(-1), rtol=1e-4)


def test_parameters_are_the_modules(params):
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), images, images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, abstract)


def test_equal_images_have_distance_zero(params, outputs):
    x = jnp.asarray(outputs["x"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(jax.jit(LPIPS().apply)({"params": params}, x, x), 0, atol=1e-12)


def test_normalisation_has_finite_gradients_where_every_feature_is_zero():
    features = jnp.zeros((1, 2, 2, 4)).at[0, 0, 0].set(jnp.arange(4.0))
    gradient = jax.grad(lambda f: (normalise(f) ** 2).sum())(features)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(jnp.sum(normalise(features) ** 2, -1)[0, 0, 0], 1, rtol=1e-6)


def test_errors_are_one_sentence(tmp_path):
    safetensors_file.write(tmp_path / "w.safetensors", {"other": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"lacks 'features.0.weight'.*other"):
        load_lpips(tmp_path / "w.safetensors", tmp_path / "w.safetensors")
    bad = {"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)}
    safetensors_file.write(tmp_path / "v.safetensors", bad)
    with pytest.raises(ValueError, match="shape"):
        load_lpips(tmp_path / "v.safetensors", tmp_path / "v.safetensors")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_lpips(tmp_path / "none.pth", tmp_path / "none.pth")
    images = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match="at least 16"):
        LPIPS().init(jax.random.key(0), images, images)
