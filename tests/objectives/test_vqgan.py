import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.objectives.vqgan import VQGAN
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.life import CodebookLife, count_codes
from var_jax.tokenizer.discriminator import PatchDiscriminator
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.train.state import TrainState
from var_jax.train.step import make_train_step


def tiny_tokenizer(
    patch_nums=(1, 2, 4), vocab_size=16, channels=8, multipliers=(1, 2), dim=4, patch_size=1
):
    codec = ResidualVQ(ScalePyramid.from_patch_nums(patch_nums), vocab_size, dim, 1)
    return VQVAE(
        codec,
        image_channels=1,
        channels=channels,
        multipliers=multipliers,
        num_res_blocks=1,
        attention=False,
        patch_size=patch_size,
        norm_groups=4,
    )


def init_params(objective):
    return nn.unbox(
        # Random numbers take most of the compile time; they need no optimised code.
        jax.jit(objective.init_params, compiler_options={"xla_backend_optimization_level": 0})(
            jax.random.key(0)
        )
    )


def blobs(count, side, seed=0):
    """Grey images [count, side, side, 1] in [-1, 1]: a few soft spots each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = np.zeros((count, side, side))
    for _ in range(3):
        cy, cx = rng.uniform(0.1, 0.9, (2, count, 1, 1))
        images += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.02)
    return jnp.asarray(np.clip(images, 0, 1)[..., None] * 2 - 1, jnp.float32)


class MeanColor(nn.Module):
    """A stand-in for a perceptual distance."""

    @nn.compact
    def __call__(self, x, y):
        assert x.shape[-1] == 3
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * jnp.square(x.mean((1, 2)) - y.mean((1, 2))).sum(-1)


@functools.cache
def adversarial_case():
    tokenizer = tiny_tokenizer()
    objective = VQGAN(
        tokenizer,
        PatchDiscriminator(4, 1),
        MeanColor(),
        adversarial_start=10,
        adversarial_ramp=4,
    )
    params = init_params(objective)
    frozen = {"perceptual": {"scale": jnp.float32(1.5)}}
    batch = {"image": blobs(4, 8)}

    @jax.jit
    def value_and_grad(params, step):
        def loss(params):
            return objective.loss(params, frozen, objective.init_stats(), batch, None, step)

        return jax.value_and_grad(loss, has_aux=True)(params)

    return objective, params, frozen, batch, value_and_grad


@pytest.mark.slow
def test_adversary_starts_and_ramps():
    *_, params, _, _, value_and_grad = adversarial_case()
    weights, active = [], []
    for step in (0, 9, 10, 12, 14, 100):
        (_, aux), grads = value_and_grad(params, step)
        metrics = aux.metrics
        weights.append(metrics["adversarial_weight"] / (0.4 * metrics["adaptive_weight"]))
        active.append(float(optax.global_norm(grads["discriminator"])) > 0)
    np.testing.assert_allclose(weights, [0, 0, 0, 0.5, 1, 1], atol=1e-6)
    assert active == [False, False, True, True, True, True]


def test_adaptive_weight_and_gradients_equal_brute_force():
    objective, params, frozen, batch, value_and_grad = adversarial_case()
    tokenizer, discriminator = objective.tokenizer, objective.discriminator
    images = batch["image"]

    def losses(p):
        output = tokenizer.apply({"params": p}, images)
        x = output.reconstruction
        perceptual = MeanColor().apply(
            {"params": frozen["perceptual"]}, *[jnp.repeat(y, 3, -1) for y in (images, x)]
        )
        distance = 0.2 * jnp.abs(x - images).mean() + jnp.square(x - images).mean()
        fooling = -discriminator.apply({"params": params["discriminator"]}, x).mean()
        return jnp.stack([distance + perceptual.mean(), fooling, output.quantized.loss])

    @jax.jit
    def brute_force(p):
        grads = jax.jacrev(losses)(p)
        kernel = grads["decoder"]["conv_out"]["kernel"]
        weight = jnp.linalg.norm(kernel[0]) / jnp.linalg.norm(kernel[1])
        return weight, jax.tree.map(lambda g: g[0] + 0.4 * weight * g[1] + g[2], grads)

    weight, expected = brute_force(params["tokenizer"])
    (_, aux), grads = value_and_grad(params, 100)
    np.testing.assert_allclose(aux.metrics["adaptive_weight"], weight, rtol=1e-3)
    for actual, wanted in zip(
        jax.tree.leaves(grads["tokenizer"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(actual, wanted, atol=1e-4 * float(jnp.abs(wanted).max()) + 1e-7)


def test_loss_is_the_sum_of_its_parts():
    objective, params, _, _, value_and_grad = adversarial_case()
    (value, aux), _ = value_and_grad(params, 100)
    m = aux.metrics
    expected = (0.2 * m["l1"] + m["l2"] + m["perceptual"] + m["vq"] + m["discriminator"]) + m[
        "adversarial_weight"
    ] * m["adversarial"]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def make_step(objective, learning_rate):
    optimizer = optax.adam(learning_rate)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, index):
        params, opt_state, stats = state

        def loss(params):
            return objective.loss(params, {}, stats, {"image": images}, None, index)

        (_, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        key = jax.random.fold_in(jax.random.key(1), index)
        params, _, stats = objective.after_update(params, None, stats, aux.carry, key, index)
        return (params, opt_state, stats), aux.metrics

    def start(params):
        return params, optimizer.init(params), objective.init_stats()

    return start, step


@pytest.mark.slow
def test_overfits_64_images():
    objective = VQGAN(
        tiny_tokenizer(vocab_size=256, channels=32, dim=8, patch_size=2),
        life=CodebookLife(warmup_steps=60, restart_every=40, restart_until=300),
    )
    images = blobs(64, 16)
    start, step = make_step(objective, optax.cosine_decay_schedule(2e-3, 500))
    state = start(init_params(objective))
    for i in range(500):
        state, metrics = step(state, images, i)
        if i % 25 == 24 and metrics["psnr"] > 30 and i > objective.life.warmup_steps:
            break
    assert metrics["psnr"] >= 30
    assert np.all(metrics["collapsed_level"] == 0)


@pytest.mark.slow
def test_a_planted_collapse_is_reported_and_restart_cures_it():
    tokenizer = tiny_tokenizer(vocab_size=64)
    images = blobs(64, 8)
    usage = {}
    for restart_every in (0, 20):
        objective = VQGAN(
            tokenizer,
            life=CodebookLife(restart_every=restart_every, restart_until=1000, usage_decay=0.9),
        )
        params = init_params(objective)
        # All codes but one are so far away that nothing ever chooses them.
        codebook = 100 + params["tokenizer"]["codec"]["codebook"]
        params["tokenizer"]["codec"]["codebook"] = codebook.at[0].set(0.0)
        start, step = make_step(objective, 1e-3)
        state = start(params)
        reported = []
        for i in range(120):
            state, metrics = step(state, images, i)
            reported.append(np.asarray(metrics["collapsed_level"]))
        assert not reported[0][0], "64 tokens are too few to call the first level collapsed"
        assert np.any(np.stack(reported[:20]), 0).all()
        usage[restart_every] = np.asarray(metrics["usage_level"])
        assert np.all(reported[-1] == (restart_every == 0))
    assert np.all(usage[0] == 1 / 64)
    assert usage[20].min() > 0.1 and usage[20].max() > 0.5


def test_warmup_is_a_plain_autoencoder_and_then_kmeans_makes_the_codebook():
    objective = VQGAN(tiny_tokenizer(vocab_size=16), life=CodebookLife(warmup_steps=3))
    start, step = make_step(objective, 1e-3)
    params = init_params(objective)
    first = np.asarray(params["tokenizer"]["codec"]["codebook"])
    state = start(params)
    images = blobs(8, 8)
    for i in range(4):
        state, metrics = step(state, images, i)
        codebook = np.asarray(state[0]["tokenizer"]["codec"]["codebook"])
        if i < 2:
            np.testing.assert_array_equal(codebook, first)
        if i < 3:
            assert metrics["vq"] == 0 and state[2].updates == 0
    assert metrics["vq"] > 0 and state[2].updates == 1
    assert not np.isin(codebook, first).any()


@pytest.mark.parametrize("step", [1, 5])
def test_eight_devices_agree_with_one(step):
    # Step 1 ends the warm-up (k-means); step 5, the fourth after it, restarts dead codes.
    objective = VQGAN(
        tiny_tokenizer(vocab_size=32),
        life=CodebookLife(warmup_steps=2, restart_every=4, restart_until=100),
    )
    params = init_params(objective)
    images = blobs(16, 8)
    stats = objective.init_stats()
    if step > 1:
        stats = stats.replace(made=jnp.array(True), updates=jnp.int32(step - 2))

    @jax.jit
    def run(params, images):
        loss, aux = objective.loss(params, {}, stats, {"image": images}, None, step)
        counts = count_codes(aux.carry["targets"], objective.tokenizer.codec.pyramid, 32)
        after, *_ = objective.after_update(
            params, None, stats, aux.carry, jax.random.key(0), jnp.int32(step)
        )
        return loss, aux.metrics, counts, after["tokenizer"]["codec"]["codebook"]

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    one, eight = run(params, images), run(replicated, sharded)
    np.testing.assert_array_equal(one[2], eight[2])
    assert np.sum(one[2]) == 16 * 21
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)


def train_step(objective, microbatches=1):
    """The trainer's step with a moving average, and its first state."""
    optimizer = optax.sgd(1e-3)
    function = make_train_step(objective, optimizer, 0, microbatches, ema_decay=0.9)
    params = init_params(objective)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        ema=params,
        stats=objective.init_stats(),
        skipped=jnp.int32(0),
    )
    index = jnp.arange(8)
    return jax.jit(lambda state, image: function(state, {}, dict(image=image, index=index))), state


def codebooks(state):
    return tuple(
        np.asarray(tree["tokenizer"]["codec"]["codebook"]) for tree in (state.params, state.ema)
    )


def test_a_skipped_update_delays_kmeans_and_new_codes_enter_the_average_as_they_are():
    objective = VQGAN(
        tiny_tokenizer((1, 2), vocab_size=64, multipliers=(1,)),
        life=CodebookLife(warmup_steps=2, restart_every=2, restart_until=100),
    )
    step, state = train_step(objective)
    images = [blobs(8, 2, seed) for seed in range(5)]
    first, _ = codebooks(state)
    state, metrics = step(state, images[0])
    state, metrics = step(state, images[1].at[3].set(jnp.nan))
    assert metrics["skipped"] == 1
    np.testing.assert_array_equal(codebooks(state)[0], first)
    state, metrics = step(state, images[2])
    assert metrics["vq"] == 0, "without a codebook it is still a plain autoencoder"
    made, average = codebooks(state)
    assert not np.isin(made, first).any()
    np.testing.assert_array_equal(average, made)
    state, metrics = step(state, images[3])
    assert metrics["vq"] > 0
    before, _ = codebooks(state)
    state, metrics = step(state, images[4])
    after, average = codebooks(state)
    # A gradient step moves a code by little, a restart by much.
    restarted = np.abs(after - before).max(1) > 1e-2
    assert 10 < restarted.sum() < 64
    np.testing.assert_array_equal(average[restarted], after[restarted])
    assert (average[~restarted] != after[~restarted]).any()


def test_microbatches_count_all_codes_and_give_all_residuals():
    # Step 0 ends the warm-up with k-means on the batch, step 1 counts.
    objective = VQGAN(tiny_tokenizer((1, 2), 16, multipliers=(1,)), life=CodebookLife(1))
    found = []
    for microbatches in (1, 4):
        step, state = train_step(objective, microbatches)
        made, _ = step(state, blobs(8, 2))
        counted, _ = step(made, blobs(8, 2, 1))
        found.append((codebooks(made)[0], counted.stats.usage))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    np.testing.assert_array_equal(found[1][1].sum(-1), [8, 32])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1)


def test_uint8_and_float_images_are_the_same():
    objective = VQGAN(tiny_tokenizer())
    params = init_params(objective)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    run = jax.jit(
        lambda image: objective.loss(params, {}, objective.init_stats(), {"image": image}, None, 0)[
            0
        ]
    )
    scaled = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
    np.testing.assert_allclose(run(pixels), run(scaled), rtol=1e-6)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="Unknown augmentation"):
        VQGAN(tiny_tokenizer(), augmentations=("blur",))
