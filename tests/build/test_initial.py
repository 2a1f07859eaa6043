"""What fine-tuning takes over, and what it refuses before anything is built."""

import json

import jax
import numpy as np
import pytest
from recipes import load

from var_jax import build
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import Checkpointer
from var_jax.parallel import sharding

DIGITS = [str(d) for d in range(10)]


def abstract(config):
    return sharding.unbox(jax.eval_shape(build.network(config).init_params, jax.random.key(0)))


def save(workdir, config, class_names=DIGITS, ema=False, fingerprint="f" * 64):
    """A transformer of any parameters; with a moving average it is that one."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract(config))
    metadata = build.metadata(config, "transformer", ema=ema, tokenizer_fingerprint=fingerprint)
    if class_names is not None:
        metadata["data"] = {"class_names": class_names}
    other = jax.tree.map(np.zeros_like, params)
    state = {"params": other, "ema": params} if ema else {"params": params}
    with Checkpointer(workdir) as checkpointer:
        checkpointer.save(7, state, metadata)
    return params


def start(workdir, config, class_names=DIGITS, fingerprint="f" * 64):
    tokenizer = build.LoadedTokenizer(build.tokenizer(config), None, fingerprint, config)
    return build.start_from(workdir, config, tokenizer, class_names)


@pytest.fixture
def config():
    config = load("mnist5k", "smallest")
    config.unlock()
    return config


def table(params):
    return params["transformer"]["class_embedding"]


def test_another_context_takes_all(tmp_path, config):
    params = save(tmp_path, config)
    found = start(tmp_path, load("family/mvar", "smallest"))
    jax.tree.map(np.testing.assert_array_equal, found.fit(params), params)


def test_a_head_that_has_grown_keeps_what_it_had(tmp_path, config):
    params, bigger = save(tmp_path, config), load("family/refiner", "smallest")
    found = start(tmp_path, bigger)
    assert f"all parameters with {len(jax.tree.leaves(found.head)) - 2} new arrays" in found.summary
    fitted = found.fit(params)
    shapes = [jax.tree.map(lambda x: x.shape, tree) for tree in (fitted, abstract(bigger))]
    assert shapes[0] == shapes[1]
    refiner = fitted["head"].pop("refiner")
    jax.tree.map(np.testing.assert_array_equal, fitted, params)
    assert not refiner["input"]["kernel"].any() and refiner["codes"].any()
    # The other way there is no head to take.
    save(tmp_path / "bigger", bigger)
    with pytest.raises(ConfigError, match="config.model.head.kind is None, there it is refiner"):
        start(tmp_path / "bigger", config)


def test_a_masked_branch_is_not_left_behind(tmp_path):
    save(tmp_path, load("family/hmar_masked", "smallest"))
    with pytest.raises(ConfigError, match="config.model.masked_blocks is 0, there it is 1"):
        start(tmp_path, load("family/hmar", "smallest"))


@pytest.mark.parametrize("ema", [False, True])
def test_the_same_classes_take_all(tmp_path, config, ema):
    params = save(tmp_path, config, ema=ema)
    found = start(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, found.fit(params), params)
    assert "the rows of 10 of 10 classes (matched by name) and of 'no class'" in found.summary
    assert found.summary.startswith("Starting from step 7 of ")


def test_other_classes_take_the_rows_of_their_names_and_of_no_class(tmp_path, config):
    params = save(tmp_path, config)
    config.model.num_classes = 3
    found = start(tmp_path, config, ["7", "bee", "2"])
    assert "1 new rows" in found.summary and "2 of 3 classes" in found.summary
    fitted = found.fit(params)
    rows = table(fitted)
    assert rows.shape == (4, config.model.width) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[[0, 2, 3]], table(params)[[7, 2, 10]])
    # The new row is drawn as at initialisation, alike on every host.
    assert np.abs(rows[1]).max() < 5 * (3 * config.model.width) ** -0.5
    np.testing.assert_array_equal(
        rows, table(start(tmp_path, config, ["7", "bee", "2"]).fit(params))
    )
    assert np.abs(rows[1] - table(params)[:, None]).min() > 0
    # Everything else is the checkpoint's, and the checkpoint's own tree stays as it was.
    fitted["transformer"] = {**fitted["transformer"], "class_embedding": table(params)}
    jax.tree.map(np.testing.assert_array_equal, fitted, params)
    assert table(params).shape[0] == 11


def test_the_same_names_in_another_order_keep_their_rows(tmp_path, config):
    params = save(tmp_path, config)
    rows = table(start(tmp_path, config, DIGITS[::-1]).fit(params))
    np.testing.assert_array_equal(rows, table(params)[[*range(9, -1, -1), 10]])


@pytest.mark.parametrize("num_classes, taken", [(10, 10), (3, 0), (12, 0)])
def test_a_checkpoint_that_does_not_know_its_names(tmp_path, config, num_classes, taken):
    params = save(tmp_path, config, class_names=None)
    config.model.num_classes = num_classes
    rows = table(start(tmp_path, config, [str(i) for i in range(num_classes)]).fit(params))
    assert len(rows) == num_classes + 1
    np.testing.assert_array_equal(rows[:taken], table(params)[:taken])
    np.testing.assert_array_equal(rows[-1], table(params)[-1])


def test_more_rows_than_the_data_has_classes(tmp_path, config):
    params = save(tmp_path, config)
    config.model.num_classes = 12
    rows = table(start(tmp_path, config).fit(params))
    np.testing.assert_array_equal(rows[[*range(10), 12]], table(params))


@pytest.mark.parametrize("class_names", [DIGITS, None])
def test_classes_that_come_after_all_that_are_known(tmp_path, config, class_names):
    """Whatever the known ones are called."""
    params = save(tmp_path, config, class_names=class_names)
    config.model.num_classes, config.train.known_classes = 12, 10
    found = start(tmp_path, config, [*DIGITS, "mug", "hat"])
    rows = table(found.fit(params))
    np.testing.assert_array_equal(rows[[*range(10), 12]], table(params))
    assert np.abs(rows[10:12, None] - table(params)).max(-1).min() > 0
    assert "the rows of 10 of 12 classes (those that it knows)" in found.summary
    config.train.known_classes = 9
    with pytest.raises(ConfigError, match="known_classes is 9, but .* has 10 classes; set it to"):
        start(tmp_path, config, [*DIGITS, "mug", "hat"])


@pytest.mark.parametrize(
    "section, key, value, there",
    [
        ("model", "depth", 2, 1),
        ("model", "width", 128, 64),
        ("model", "num_heads", 2, 1),
        ("model", "mlp_ratio", 2.0, 4.0),
        ("model", "qk_norm", False, True),
        ("model", "shared_adaln", True, False),
        (None, "patch_nums", (1, 2, 3, 4), [1, 2, 4, 4]),
    ],
)
def test_what_does_not_fit_is_named_by_its_key(tmp_path, config, section, key, value, there):
    save(tmp_path, config)
    (config if section is None else config[section])[key] = value
    name = key if section is None else f"{section}.{key}"
    shown = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ConfigError, match="^[^\n]*$") as error:
        start(tmp_path, config)
    assert f"do not fit this run: config.{name} is {shown}, there it is {there}" in str(error.value)
    assert str(error.value).count("config.") == 1


def test_every_key_that_shapes_the_parameters_is_a_knob(config):
    """Of all keys of the model, those named above and the classes' number are those that count."""
    before = json.dumps(jax.tree.map(lambda x: x.shape, abstract(config)))
    others = dict(adaln_init=0.1, adaln_gamma_init=0.1, label_smoothing=0.1)
    others |= dict(drop_path_rate=0.1, class_drop_rate=0.2, remat="full", scan_unroll=1)
    others |= dict(dtype="bfloat16", attention_implementation="xla", masked_blocks=0)
    config.model.update(others)
    assert json.dumps(jax.tree.map(lambda x: x.shape, abstract(config))) == before
    shaping = {"depth", "width", "num_heads", "mlp_ratio", "qk_norm", "shared_adaln"}
    shaping |= {"cross_attention", "cross_norm", "transformer"}
    from var_jax.build.modules import model_section

    assert {*others, *shaping, "num_classes"} == {*model_section(None).keys}


def test_a_transformer_of_another_tokenizer_is_refused(tmp_path, config):
    save(tmp_path, config, fingerprint="a" * 64)
    with pytest.raises(ConfigError, match="tokenizer aaaaaaaaaaaa, but .* is ffffffffffff"):
        start(tmp_path, config)


def test_a_tokenizer_is_no_transformer(tmp_path, config):
    with Checkpointer(tmp_path) as checkpointer:
        metadata = build.metadata(config, "tokenizer", ema=False)
        checkpointer.save(0, {"params": {"x": np.zeros(2)}}, metadata)
    with pytest.raises(ConfigError, match="holds a tokenizer; give the workdir of a transformer"):
        start(tmp_path, config)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        start(tmp_path / "nowhere", config)
