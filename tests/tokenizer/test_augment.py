import jax
import jax.numpy as jnp
import numpy as np
import pytest

from var_jax.tokenizer.augment import augment

ALL = ("color", "translation", "cutout")


def images(batch=3):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (batch, 16, 24, 3)), jnp.float32)


def test_each_image_depends_on_its_own_key_only():
    keys = jax.random.split(jax.random.key(0), 3)
    run = jax.jit(lambda keys, x: augment(keys, x, ALL))
    together = run(keys, images())
    alone = jnp.concatenate([run(keys[i : i + 1], images()[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert not np.allclose(together, run(keys[::-1], images()))


def test_gradients_reach_the_images():
    keys = jax.random.split(jax.random.key(0), 3)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(augment(keys, x, ALL) ** 2)))(images())
    assert jnp.all(jnp.isfinite(grad)) and jnp.mean(grad != 0) > 0.3


def test_translation_moves_by_whole_pixels_and_pads_with_zeros():
    x = jnp.arange(1.0, 16 * 24 + 1).reshape(1, 16, 24, 1)
    moved = set()
    for seed in range(20):
        y = np.asarray(augment(jax.random.key(seed)[None], x, ("translation",)))[0, ..., 0]
        row, column = np.argwhere(y == np.asarray(x)[0, 8, 12, 0])[0]
        dy, dx = row - 8, column - 12
        assert abs(dy) <= 2 and abs(dx) <= 3
        moved.add((dy, dx))
        assert np.count_nonzero(y) == (16 - abs(dy)) * (24 - abs(dx))
    assert len(moved) > 5


def test_cutout_removes_at_most_a_square_of_half_the_side():
    ones = jnp.ones((8, 16, 16, 1))
    kept = augment(jax.random.split(jax.random.key(1), 8), ones, ("cutout",)).sum((1, 2, 3))
    assert jnp.all(kept < 256) and jnp.all(kept >= 192)


def test_no_policy_changes_nothing_and_an_unknown_one_is_refused():
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(augment(keys, images(), ()), images())
    with pytest.raises(ValueError, match="Unknown augmentation 'colour'"):
        augment(keys, images(), ("colour",))
