"""The whole system against the outputs of the official implementation (tests/goldens)."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens.fill import fill

from var_jax.convert import official, var, vqvae
from var_jax.convert.lazy_state import LazyState, LazyTensor
from var_jax.convert.mapping import check, flatten, read
from var_jax.decoding.guidance import LinearGuidance
from var_jax.decoding.next_scale import NextScale
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.objectives.likelihood import Likelihood
from var_jax.train.optim import OptimizerConfig, decay_mask, make_optimizer
from var_jax.train.state import TrainState
from var_jax.train.step import make_train_step

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def state_of(layout):
    def lazy(name, shape):
        return LazyTensor(tuple(shape), np.dtype(np.float32), lambda: fill(name, shape))

    return LazyState(str(layout), {n: lazy(n, s) for n, s in json.loads(layout.read_text())})


@dataclasses.dataclass
class Case:
    """Modules, parameters on the device, official names and outputs of one golden case."""

    config: dict
    tokenizer: object
    tokenizer_params: dict
    network: Network
    params: dict
    slots: dict
    folder: pathlib.Path
    outputs: dict

    def json(self, name):
        return json.loads((self.folder / name).read_text())


@functools.cache
def load_case(name):
    folder = GOLDENS / name
    config = json.loads((folder / "config.json").read_text())
    state = state_of(folder / "vae_layout.json")
    tokenizer = official.build_tokenizer(vqvae.infer(state, config["pn"]))
    slots = official.tokenizer_slots(tokenizer)
    check(state, slots, vqvae.BUFFERS, name)
    tokenizer_params = read(state, slots, official.abstract_tokenizer(tokenizer))

    state = state_of(folder / "var_layout.json")
    network = official.build_network(var.infer(state, config["pn"]))
    slots = official.network_slots(network)
    check(state, slots, var.BUFFERS, name)
    params = read(state, slots, official.abstract_network(network))
    # Dropout of labels belongs to training; the golden steps had none.
    network = Network(network.transformer.clone(class_drop_rate=0.0), network.head)
    return Case(
        config,
        tokenizer,
        jax.tree.map(jnp.asarray, tokenizer_params),
        network,
        jax.tree.map(jnp.asarray, params),
        slots,
        folder,
        dict(np.load(folder / "outputs.npz")),
    )


@pytest.fixture(params=["a", "b"])
def case(request):
    return load_case(request.param)


def nhwc(x):
    return np.transpose(x, (0, 2, 3, 1))


def all_tokens(outputs):
    levels = sum(name.startswith("tokens_") for name in outputs)
    return np.concatenate([outputs[f"tokens_{k}"] for k in range(levels)], 1)


def assert_close(actual, expected, tolerance=1e-4):
    """Largest difference over the largest expected magnitude."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_configuration_is_read_off_the_names(case):
    config, transformer, codec = case.config, case.network.transformer, case.tokenizer.codec
    assert (transformer.depth, transformer.width) == (config["depth"], 64 * config["depth"])
    assert transformer.num_heads == config["depth"]
    assert (transformer.qk_norm, transformer.shared_adaln) == (config["l2"], config["saln"])
    assert transformer.num_classes == config["ncls"]
    assert transformer.pyramid.patch_nums == codec.pyramid.patch_nums == tuple(config["pn"])
    assert (codec.vocab_size, codec.code_dim) == (config["V"], config["Cvae"])
    assert (codec.phi_sharing, case.network.head.vocab_size) == (config["phi"], config["V"])
    assert case.tokenizer.channels == config["ch"]


def test_tokenizer(case):
    @jax.jit
    def run(params, images):
        def apply(x, method):
            return case.tokenizer.apply({"params": params}, x, method=method)

        features = apply(images, "features")
        tokens = apply(images, "encode")
        return features, tokens, apply(tokens, "decode_tokens"), apply(images, "reconstruct")

    out = case.outputs
    features, tokens, decoded, reconstruction = run(case.tokenizer_params, nhwc(out["image"]))
    np.testing.assert_array_equal(tokens, all_tokens(out))
    assert_close(features, nhwc(out["features"]))
    assert_close(reconstruction, nhwc(out["reconstruction"]))
    assert_close(decoded, nhwc(out["reconstruction"]))


def test_codec(case):
    codec = case.tokenizer.codec

    @jax.jit
    def run(params, tokens, features, cotangent):
        def apply(params, x, method):
            return codec.apply({"params": params}, x, method=method)

        def scalar(params, features):
            quantized = apply(params, features, "quantize")
            return jnp.vdot(quantized.features, cotangent) + quantized.loss, quantized.loss

        (_, loss), grads = jax.value_and_grad(scalar, (0, 1), has_aux=True)(params, features)
        sums = apply(params, tokens, "features_by_level")
        inputs = apply(params, tokens, "teacher_inputs")
        return sums[0], sums[-1], inputs, loss, optax.global_norm(grads[0]["codebook"]), grads[1]

    out = case.outputs
    first, last, inputs, loss, codebook_norm, gradient = run(
        case.tokenizer_params["codec"],
        all_tokens(out),
        nhwc(out["features"]),
        nhwc(out["quantizer_cotangent"]),
    )
    assert_close(first, nhwc(out["f_hat_0"]))
    assert_close(last, nhwc(out["f_hat"]))
    # The official code leaves out the first level, which the class embedding fills.
    assert_close(inputs[:, codec.pyramid.sizes[0] :], out["teacher_forcing_input"])
    assert_close(loss, out["quantizer_loss"])
    assert_close(codebook_norm, out["quantizer_grad_codebook_norm"])
    assert_close(gradient, nhwc(out["quantizer_grad_features"]))


def logits(case, params, inputs, labels):
    hidden, _ = case.network.hidden(params, inputs, labels)
    return case.network.head.apply({"params": params["head"]}, hidden)


def teacher_inputs(case):
    first = np.zeros((case.config["B"], case.config["pn"][0] ** 2, case.config["Cvae"]), np.float32)
    return np.concatenate([first, case.outputs["teacher_forcing_input"]], 1)


def test_logits(case):
    run = jax.jit(functools.partial(logits, case))
    out, inputs = case.outputs, teacher_inputs(case)
    assert_close(run(case.params, inputs, out["labels"].astype(np.int32)), out["logits"])
    nothing = np.full(case.config["B"], case.config["ncls"], np.int32)
    assert_close(run(case.params, inputs, nothing), out["logits_uncond"])


@pytest.mark.parametrize("cfg", [1.5, 4.0])
def test_greedy_generation(case, cfg):
    decoder = NextScale(LinearGuidance(cfg), CategoricalSampling(top_k=1, top_p=0.0))

    @jax.jit
    def run(params, tokenizer_params, labels, keys):
        codec, codec_params = case.tokenizer.codec, tokenizer_params["codec"]
        made = decoder(case.network, params, codec, codec_params, labels, keys)
        variables = {"params": tokenizer_params}
        return made.targets, case.tokenizer.apply(variables, made.features, method="decode")

    labels = case.outputs["labels"].astype(np.int32)
    keys = jax.random.split(jax.random.key(0), len(labels))
    tokens, images = run(case.params, case.tokenizer_params, labels, keys)
    np.testing.assert_array_equal(tokens, case.outputs[f"greedy_cfg{cfg}_tokens"])
    assert_close((images + 1) / 2, nhwc(case.outputs[f"greedy_cfg{cfg}_image"]))


def test_weight_decay_groups(case):
    mask = flatten(decay_mask(case.params))
    groups = {name: 0.05 if mask[slot.path] else 0.0 for name, slot in case.slots.items()}
    assert groups == case.json("weight_decay.json")


def test_gradient_of_each_parameter(case):
    objective = Likelihood(case.network, case.tokenizer)

    @jax.jit
    def run(params, codec_params, batch):
        def loss(params):
            frozen = {"tokenizer": {"codec": codec_params}}
            return objective.loss(params, frozen, (), batch, None, 0)[0]

        return jax.grad(loss)(params)

    batch = {"tokens": all_tokens(case.outputs), "label": case.outputs["labels"].astype(np.int32)}
    grads = flatten(jax.device_get(run(case.params, case.tokenizer_params["codec"], batch)))
    expected = case.json("grad_norms.json")
    assert expected.keys() == case.slots.keys()
    largest = max(expected.values())
    for name, slot in case.slots.items():
        norm = np.linalg.norm(slot.to_theirs(grads[slot.path]))
        assert abs(norm - expected[name]) <= 1e-4 * expected[name] + 1e-7 * largest, name


def test_five_training_steps(case):
    config = OptimizerConfig(learning_rate=1e-3, schedule="constant", weight_decay=0.05)
    optimizer = make_optimizer(config, num_steps=5)
    objective = Likelihood(case.network, case.tokenizer)
    step = jax.jit(make_train_step(objective, optimizer))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=case.params,
        opt_state=optimizer.init(case.params),
        ema=None,
        stats=(),
        skipped=jnp.zeros((), jnp.int32),
    )
    out = case.outputs
    labels = out["labels"].astype(np.int32)
    batch = {"tokens": all_tokens(out), "label": labels, "index": np.arange(len(labels))}
    losses, norms = [], []
    for _ in range(5):
        state, metrics = step(state, {"tokenizer": case.tokenizer_params}, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    np.testing.assert_allclose(losses, out["train_losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, out["train_grad_norms"], rtol=1e-4)
    run = jax.jit(functools.partial(logits, case))
    assert_close(run(state.params, teacher_inputs(case), labels), out["logits_after_training"])
