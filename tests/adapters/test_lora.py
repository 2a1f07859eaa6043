"""LoRA: what it changes, and runs whose checkpoints hold the change alone."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_network import CODEC, PYRAMID, codec_params, filled, model

import var_jax
from var_jax import build
from var_jax.adapters.base import Adapted
from var_jax.adapters.lora import LoRA
from var_jax.build.merging import merge_adapter
from var_jax.checkpoint import Checkpointer
from var_jax.objectives.contrastive import Contrastive
from var_jax.parallel import sharding
from var_jax.tokenizer.vqvae import VQVAE

NETWORK, BASE = model()
ADAPTER = LoRA(rank=2, alpha=6.0)
CHANGED = ("attention/out/kernel", "attention/qkv_kernel", "mlp/down/kernel", "mlp/up/kernel")
BLOCKS = ("transformer", "blocks")


def initial():
    return sharding.unbox(ADAPTER.init_params(NETWORK, jax.random.key(1)))


def drawn():
    """Random matrices, none of them zero."""
    return filled(lambda key: ADAPTER.init_params(NETWORK, key), 4)


def test_at_first_it_changes_nothing_and_has_a_gradient():
    params = initial()
    jax.tree.map(np.testing.assert_array_equal, ADAPTER.apply(params, BASE), BASE)

    def loss(params):
        return sum(jnp.sum(x) for x in jax.tree.leaves(ADAPTER.apply(params, BASE)))

    for path, slope in flatten_dict(jax.grad(loss)(params)).items():
        assert (np.abs(slope).max() > 0) == (path[-1] == "b")
    found = {path[-1]: x for path, x in flatten_dict(params).items() if "up" in path}
    assert found["a"].std() == pytest.approx((1 / (3 * 32)) ** 0.5, rel=0.2)


def test_a_change_is_the_product_of_each_layer_s_own_matrices():
    params, changed = drawn(), flatten_dict(ADAPTER.apply(drawn(), BASE), sep="/")
    base, own = flatten_dict(BASE, sep="/"), flatten_dict(params, sep="/")
    # How many axes of a layer's weight it contracts.
    for name, contracted in zip(CHANGED, (2, 1, 1, 1), strict=True):
        path = "/".join((*BLOCKS, name))
        a, b = own.pop(f"{path}/a"), own.pop(f"{path}/b")
        weight, new = base[path], changed.pop(path)
        assert a.shape == (*weight.shape[: 1 + contracted], 2)
        for layer in range(2):
            product = a[layer].reshape(-1, 2) @ b[layer].reshape(2, -1)
            expected = weight[layer] + 3.0 * product.reshape(weight.shape[1:])
            np.testing.assert_allclose(new[layer], expected, atol=1e-6)
    assert not own
    for path, x in changed.items():
        np.testing.assert_array_equal(x, base[path])


def test_it_is_trained_by_any_objective():
    """By CCA, whose reference is the base: both are the same model at first."""
    tokenizer = VQVAE(CODEC, 1, 8, (1,), 1, False, norm_groups=4)
    objective = Adapted(Contrastive(NETWORK, tokenizer, null_rate=0.0), ADAPTER)
    assert objective.frozen_parts().keys() == {"tokenizer", "reference"}
    frozen = {"tokenizer": {"codec": codec_params()}, "reference": BASE}
    tokens = np.random.default_rng(1).integers(0, CODEC.vocab_size, (4, PYRAMID.length))
    batch = {"tokens": tokens.astype(np.int32), "label": jnp.array([0, 1, 2, 1])}
    keys = jax.vmap(jax.random.key)(jnp.arange(4))

    @jax.jit
    def run(params):
        return jax.value_and_grad(objective.loss, has_aux=True)(params, frozen, (), batch, keys, 0)

    (value, _), slopes = run(initial())
    assert value == pytest.approx(51 * np.log(2), rel=1e-6)
    assert all(np.abs(x).max() > 0 for path, x in flatten_dict(slopes).items() if path[-1] == "b")


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(weights=("*/q_bias",)), "attention/q_bias, which is no matrix; LoRA takes"),
        (dict(weights=("*/mpl/*",)), "has '\\*/mpl/\\*', which matches no parameter"),
    ],
)
def test_what_has_no_product_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRA(**settings).init_params(NETWORK, jax.random.key(0))
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        dataclasses.replace(ADAPTER, rank=0)


def test_an_objective_of_a_part_and_an_adapter_are_refused():
    given = {"train.adapter": "lora"}
    with pytest.raises(ValueError, match="adapter changes a network, but .* trains masked/"):
        methods.batch(methods.smallest("family/hmar_masked", given))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of the model `model`, and of the adapter's run `run`."""
    folder = tmp_path_factory.mktemp("lora")
    given = methods.prepare(folder, "family/lora")
    given |= {"train.num_steps": 2, "train.optimizer.learning_rate": 0.1}
    config = methods.smallest("family/lora", given | {"evaluation.likelihood": True})
    assert build.run(config, str(folder / "run"), "transformer")
    return folder


def parameters(path):
    return build.load_params(path, "transformer", None)[0]


def test_the_checkpoint_holds_the_change_and_names_its_base(run):
    with Checkpointer(run / "run", read_only=True) as reader:
        own, about, _ = reader.restore_params("params", as_numpy=True)
    assert {path[-1] for path in flatten_dict(own)} == {"a", "b"}
    base, kept = parameters(run / "model"), parameters(run / "run" / "reference")
    jax.tree.map(np.testing.assert_array_equal, kept, base)
    assert about["reference_fingerprint"] == var_jax.checkpoint.fingerprint(base)
    assert about["adapter"] == {"kind": "lora", "rank": 2, "alpha": 4.0}
    changed = parameters(run / "run")
    expected = LoRA(2, 4.0).apply(own, base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), changed, expected)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), changed, base)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_what_draws_takes_it_as_any_model_and_merged_it_is_the_same(run):
    merge_adapter(run / "run", run / "merged")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    adapted, merged = (var_jax.load(run / name, mesh=mesh) for name in ("run", "merged"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        adapted.transformer.params,
        merged.transformer.params,
    )
    assert adapted.sample([3]).shape == (1, *adapted.image_shape)
    jax.tree.map(np.testing.assert_array_equal, parameters(run / "merged"), parameters(run / "run"))
    with pytest.raises(ValueError, match="merged already; choose a new --output"):
        merge_adapter(run / "run", run / "merged")
    with pytest.raises(ValueError, match="merged holds no adapter"):
        merge_adapter(run / "merged", run / "other")
    # Cut over a mesh as it is read.
    cut = sharding.make_mesh(1, 2, 2, devices=jax.devices()[:4])
    loaded = build.load_transformer(run / "run", mesh=cut, preset="fsdp_tensor")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        loaded.params,
        parameters(run / "run"),
    )


def test_training_goes_on_from_what_an_adapter_made(run):
    given = {"train.initial_checkpoint": str(run / "run")}
    given |= {"tokenizer_checkpoint": str(run / "model/tokenizer")}
    config = methods.smallest("mnist5k", given | {"token_cache": str(run / "tokens")})
    started = build.transformer_experiment(config).initial_params
    jax.tree.map(np.testing.assert_array_equal, started, parameters(run / "run"))


def test_without_its_base_or_with_another_it_is_refused(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/reference")
    with pytest.raises(FileNotFoundError, match="holds an adapter of the transformer .* not in"):
        parameters(tmp_path / "moved")
    about = {"kind": "transformer", "fingerprint": "another"}
    with Checkpointer(tmp_path / "moved/reference") as writer:
        writer.save(0, {"params": {"x": np.zeros(2)}}, about)
    with pytest.raises(ValueError, match=r"\(another\) is not the one that the adapter in"):
        parameters(tmp_path / "moved")
