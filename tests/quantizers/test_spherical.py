import jax
import jax.numpy as jnp
import numpy as np

from var_jax.quantizers.spherical import BinarySpherical, bits_of, codes_of, entropy


def vectors(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_codes_are_unit_vectors_and_their_bits_come_back():
    bits = jnp.asarray(np.random.default_rng(1).integers(0, 2, (50, 7)), jnp.uint8)
    codes = codes_of(bits)
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(bits_of(codes), bits)


def test_a_code_is_the_nearest_of_all():
    dim = 5
    every = codes_of((jnp.arange(2**dim)[:, None] >> jnp.arange(dim) & 1).astype(jnp.uint8))
    x = vectors(40, dim)
    distance = jnp.square(x[:, None] - every).sum(-1)
    np.testing.assert_array_equal(codes_of(bits_of(x)), every[distance.argmin(-1)])


def test_the_gradient_is_that_of_the_unit_vector():
    x, direction = vectors(6, 4), vectors(6, 4) + 1

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    got = jax.grad(lambda x: (BinarySpherical()(x)[0] * direction).sum())(x)
    np.testing.assert_allclose(got, jax.grad(lambda x: (unit(x) * direction).sum())(x), atol=1e-6)


def test_the_loss_is_the_published_one():
    x, quantizer = vectors(3, 5, 8), BinarySpherical(0.5, 0.2, 3.0)
    _, loss, parts = quantizer(x)
    z = np.asarray(x, np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    p = 1 / (1 + np.exp(-4 * z / np.sqrt(8) * 3.0))

    def nats(p):
        return -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1)

    commitment = np.square(z - np.where(z > 0, 1, -1) / np.sqrt(8)).mean()
    penalty = nats(p).mean() - nats(p.mean((0, 1)))
    np.testing.assert_allclose(loss, 0.5 * commitment + 0.2 * penalty / 3, rtol=1e-5)
    np.testing.assert_allclose(parts["commitment"], commitment, rtol=1e-5)


def test_a_collapsed_bit_is_driven_apart_and_a_sure_choice_stays():
    quantizer = BinarySpherical(commitment_weight=0.0, inverse_temperature=1.0)
    # The first bit is 1 in all vectors, the others are balanced.
    x = vectors(400, 4).at[:, 0].set(1.0)
    step = -jax.grad(lambda x: quantizer(x)[1])(x)
    assert step[:, 0].mean() < 0
    sure = BinarySpherical(0.0, 1.0, 1e4)(x)[2]["choice_entropy"]
    assert 0 <= sure < 1e-2
    assert jnp.isfinite(jax.grad(lambda x: BinarySpherical(0, 1, 1e4)(x)[1])(x)).all()


def test_entropy_of_a_coin_and_of_a_certainty():
    np.testing.assert_allclose(entropy(jnp.array([0.5, 0.0, 1.0])), [np.log(2), 0, 0], atol=1e-6)
