import jax
import numpy as np
import pytest

from var_jax.convert import mapping
from var_jax.convert.lazy_state import LazyTensor
from var_jax.convert.mapping import Row

ROWS = (
    Row("blocks/qkv", "blocks.{stack}.qkv.weight", "(s n h) c -> c s n h"),
    Row("blocks/scale", "blocks.{stack}.scale", "1 n 1 1 -> n"),
    Row("stage_{i}/kernel", "down.{i}.conv.weight", "o i h w -> h w i o"),
    Row("phi", "phi.weight", "o i h w -> 1 h w i o"),
    Row("products", "{part}.weight", "o i -> i o", ("q", "k")),
)
SHAPES = {
    "blocks/qkv": (2, 6, 3, 2, 5),
    "blocks/scale": (2, 7),
    "stage_0/kernel": (3, 4, 2, 5),
    "stage_11/kernel": (1, 1, 2, 2),
    "phi": (1, 3, 3, 2, 4),
    "products": (2, 6),
}
THERE = {
    "blocks.0.qkv.weight": (30, 6),
    "blocks.1.qkv.weight": (30, 6),
    "blocks.0.scale": (1, 7, 1, 1),
    "blocks.1.scale": (1, 7, 1, 1),
    "down.0.conv.weight": (5, 2, 3, 4),
    "down.11.conv.weight": (2, 2, 1, 1),
    "phi.weight": (4, 2, 3, 3),
    "q.weight": (3, 2),
    "k.weight": (3, 2),
}


def abstract():
    return mapping.unflatten(
        {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in SHAPES.items()}
    )


def state(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    lazy = {n: LazyTensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}
    return arrays, lazy


def test_names_and_shapes_follow_from_ours():
    slots = mapping.expand(ROWS, abstract())
    assert {name: slot.shape for name, slot in slots.items()} == THERE


def test_values():
    arrays, lazy = state(THERE)
    params = mapping.read(lazy, mapping.expand(ROWS, abstract()), abstract())
    assert {p: a.shape for p, a in mapping.flatten(params).items()} == SHAPES
    qkv = arrays["blocks.1.qkv.weight"].reshape(3, 2, 5, 6)
    np.testing.assert_array_equal(params["blocks"]["qkv"][1], np.einsum("snhc->csnh", qkv))
    np.testing.assert_array_equal(params["blocks"]["scale"][1], arrays["blocks.1.scale"].ravel())
    kernel = arrays["down.0.conv.weight"]
    np.testing.assert_array_equal(params["stage_0"]["kernel"], np.einsum("oihw->hwio", kernel))
    np.testing.assert_array_equal(params["phi"][0], np.einsum("oihw->hwio", arrays["phi.weight"]))
    products = np.concatenate([arrays["q.weight"], arrays["k.weight"]]).T
    np.testing.assert_array_equal(params["products"], products)
    assert all(a.ctypes.data % 64 == 0 for a in mapping.flatten(params).values())


def test_there_and_back():
    arrays, lazy = state(THERE)
    slots = mapping.expand(ROWS, abstract())
    back = mapping.tensors(mapping.read(lazy, slots, abstract()), slots)
    assert back.keys() == arrays.keys()
    for name, tensor in back.items():
        assert tensor.shape == arrays[name].shape
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_half_precision_becomes_float32():
    arrays, lazy = state(THERE, np.float16)
    params = mapping.read(lazy, mapping.expand(ROWS, abstract()), abstract())
    assert params["phi"].dtype == np.float32
    expected = np.einsum("oihw->hwio", arrays["phi.weight"])
    np.testing.assert_array_equal(params["phi"][0], expected)


def test_check_lists_by_name():
    slots = mapping.expand(ROWS, abstract())
    _, lazy = state({**THERE, "mask": (2, 2)})
    mapping.check(lazy, slots, ("mask",), "x.pth")
    del lazy["blocks.1.scale"]
    _, odd = state({"stray.weight": (2,), "down.0.conv.weight": (5, 2, 3, 3)})
    with pytest.raises(ValueError) as error:
        mapping.check({**lazy, **odd}, slots, ("mask",), "x.pth")
    assert str(error.value) == (
        "x.pth does not fit. missing: blocks.1.scale [1, 7, 1, 1]; unexpected: stray.weight [2]; "
        "of the wrong shape: down.0.conv.weight is [5, 2, 3, 3] instead of [5, 2, 3, 4]."
    )


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(ValueError, match="new/bias has 0 places"):
        mapping.expand(ROWS, {"new": {"bias": np.zeros(3)}})
