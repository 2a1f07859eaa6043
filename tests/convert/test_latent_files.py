"""Files of MAR, of xAR and of their autoencoder: all names have a place, and what is read is the
golden's."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from family import mar, xar
from family.case import Case, nhwc
from goldens.fill import fill
from ml_collections import ConfigDict
from recipes import load

import var_jax
from var_jax import build
from var_jax.build import official_files
from var_jax.codecs.kl_latent import KLLatent
from var_jax.convert import official, safetensors_file, vit
from var_jax.convert.config import tokenizer_config, transformer_config
from var_jax.convert.kl import LATENT_SCALE
from var_jax.tokenizer.vqvae import VQVAE

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
CASE = Case(GOLDENS / "family/mar")
KL = GOLDENS / "published_tokenizers/kl"
HEADS = CASE.config["encoder_num_heads"]


def write(path, state):
    safetensors_file.write(path, state)
    return str(path)


def kl_state():
    named = json.loads((KL / "layout.json").read_text())
    return {name: fill(name, tuple(shape)) for name, shape in named}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(autoencoder, transformer) as published, beside a discriminator and a moving average."""
    folder = tmp_path_factory.mktemp("files")
    state = CASE.state()
    both = {f"{group}.{name}": x for group in ("model", "model_ema") for name, x in state.items()}
    discriminator = {"loss.discriminator.weight": np.zeros((2, 3), np.float32)}
    return (
        write(folder / "kl.safetensors", kl_state() | discriminator),
        write(folder / "mar.safetensors", both),
    )


def test_the_transformer_is_the_goldens(files):
    network, params = official.read_network(files[1], num_heads=HEADS, group="model_ema")
    expected_network, expected = mar.case_network(CASE)
    assert network.head == expected_network.head
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))


def test_the_autoencoder_gives_the_moments_and_pictures_of_its_code(files):
    tokenizer, params = official.read_tokenizer(files[0], (1, 2, 4))
    assert not tokenizer.decoder_attention
    outputs = dict(np.load(KL / "outputs.npz"))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)

    @jax.jit
    def run(params, images):
        apply = functools.partial(tokenizer.apply, {"params": params})
        latents = apply(images, method="encode")
        return apply(images, method="features"), latents, apply(latents, method="decode_tokens")

    features, latents, pictures = run(params, nhwc(images))
    for found, expected in (
        (features, nhwc(outputs["features"])),
        (latents[:, 5:], nhwc(outputs["latents"]).reshape(2, 16, -1)),
        (pictures[:1], nhwc(np.clip(outputs["decoded"], -1, 1))),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert params["codec"]["moments"][1] == pytest.approx(LATENT_SCALE**-2)


@pytest.fixture(scope="module")
def xar_file(tmp_path_factory):
    """As its code saves it, with what it computes from the config."""
    case = Case(GOLDENS / "family/xar")
    named = json.loads((case.folder / "layout.json").read_text())
    state = {name: np.zeros(shape, np.float32) for name, shape in named} | case.state()
    return case, write(tmp_path_factory.mktemp("file") / "xar.safetensors", state)


@pytest.mark.parametrize("size", ["base", "large", "huge"])
@pytest.mark.parametrize("method", ["mar", "xar"])
def test_published_sizes_are_drawn_from_as_their_configs_say(method, size):
    config = load(f"family/{method}", size)
    network = build.network(config)
    made = transformer_config(build.tokenizer(config), network)
    assert made["model"]["decoder_depth"] is None and made["model"]["width"] == config.model.width
    for name in ("cfg", "num_steps"):
        assert made["sampling"][name] == config.sampling[name]
    assert vit.NUM_HEADS[network.transformer.width] == network.transformer.num_heads


def test_xar_is_the_goldens(xar_file):
    case, path = xar_file
    network, params = official.read_network(path, num_heads=case.config["heads"])
    expected_network, _, expected, _ = xar.case_network(case)
    assert network == expected_network
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(expected))
    tokenizer = VQVAE(KLLatent(network.denoiser.pyramid, 16), channels=32)
    config = ConfigDict(json.loads(json.dumps(transformer_config(tokenizer, network))))
    assert build.network(config) == network
    assert build.load_decoder(config).decoder.guidance.weight(3, network.denoiser.entities) == 1.2


def test_an_autoencoder_with_attention_in_both_stages_is_read_too(tmp_path):
    attention = {
        name.replace("encoder.down.4.attn.0", f"decoder.up.4.attn.{i}"): x
        for name, x in kl_state().items()
        if name.startswith("encoder.down.4.attn.0.")
        for i in range(3)
    }
    assert len(attention) == 30
    path = write(tmp_path / "kl.safetensors", kl_state() | attention)
    assert official.read_tokenizer(path)[0].decoder_attention


def test_both_are_imported_and_drawn_from(files, tmp_path):
    given = {"vae": files[0], "transformer": files[1], "group": "model_ema", "num_heads": HEADS}
    official_files.import_files(tmp_path / "model", **given)
    loaded = build.load_transformer(tmp_path / "model")
    assert build.network(loaded.config) == loaded.network
    config = ConfigDict(json.loads(json.dumps(tokenizer_config(loaded.tokenizer.module))))
    assert build.tokenizer(config) == loaded.tokenizer.module
    assert loaded.config.sampling.decoder.num_iterations == 36
    settings = {"decoder": {"kind": "random_order", "num_iterations": 3, "num_stages": 1}}
    drawn = var_jax.load(tmp_path / "model").sample([3, 3], num_steps=2, **settings)
    assert drawn.shape == (2, 96, 96, 3) and (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"encoder_blocks.1.norm2.bias": None}, r"missing: encoder_blocks.1.norm1\+norm2.bias"),
        ({"fake_latent": None}, r"missing: class_emb.weight\+fake_latent .*unexpected: class_emb"),
        ({"decoder_blocks.0.attn.qkv.bias": None}, r"missing: decoder_blocks.0.attn.qkv.bias\[q\]"),
        ({"pos_1LC": np.zeros((2, 3), np.float32)}, r"unexpected: pos_1LC \[2, 3\]"),
        (
            {"decoder_embed.weight": np.zeros((64, 32), np.float32)},
            "decoder of another width than its encoder's 32",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    state = {k: v for k, v in (CASE.state() | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        official.describe_transformer(write(tmp_path / "mar.safetensors", state), num_heads=HEADS)


def test_what_the_file_does_not_say_is_asked_for(files):
    with pytest.raises(ValueError, match="width 32, of which .*give --num_heads"):
        official.describe_transformer(files[1], group="model")
    with pytest.raises(ValueError, match=r"36 tokens in one square level, which .*\(1, 2, 4\)"):
        official.describe_transformer(files[1], (1, 2, 4), HEADS, "model")


def test_another_autoencoder_is_refused(tmp_path):
    state = kl_state()
    changed = state | {"post_quant_conv.weight": np.zeros((3, 4, 1, 1), np.float32)}
    with pytest.raises(ValueError, match="encodes to 8 channels and decodes 3 of 4"):
        official.read_tokenizer(write(tmp_path / "kl.safetensors", changed))
