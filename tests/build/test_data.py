import numpy as np
import pytest
from recipes import TRANSFORMERS, load

from var_jax import build
from var_jax.data.token_cache import TokenCacheSettings, TokenCacheWriter


@pytest.mark.parametrize("recipe", TRANSFORMERS)
def test_only_training_crops_at_random(recipe):
    config = load(*recipe)
    assert build.transform(config, train=True).random_crop
    assert not build.transform(config, train=False).random_crop


def test_the_number_of_classes_comes_from_the_data():
    config = load("mnist5k")
    config.model.num_classes = 0
    build.set_num_classes(config, 7)
    assert config.model.num_classes == 7
    with pytest.raises(ValueError, match="num_classes is 7, but the data has 8 classes"):
        build.set_num_classes(config, 8)


def test_what_a_run_reads_is_known_before_it_starts():
    config = load("var_imagenet256", "d16")
    config.data.options.path = "gs://b/images"
    assert build.data_paths(config, cached=False) == ["gs://b/images"]
    config.tokenizer_checkpoint = "gs://b/tokenizer"
    assert build.data_paths(config, cached=True) == ["gs://b/images", "gs://b/tokenizer"]
    config.token_cache = "gs://b/tokens"
    assert build.data_paths(config, cached=True) == ["gs://b/tokens", "gs://b/tokenizer"]
    assert build.data_paths(config, cached=False) == ["gs://b/images"]
    assert build.data_paths(load("mnist5k"), cached=True) == []
    config = load("family/code", "smallest")
    config.sampling.decoder.refiner = "gs://b/refiner"
    assert build.data_paths(config, cached=True) == ["gs://b/refiner"]
    assert build.data_paths(config, cached=False) == []


def make_cache(folder, config, split="train", crops=2, **changes):
    tokenizer = build.tokenizer(config)
    values = dict(
        fingerprint="f" * 64,
        shapes=tokenizer.codec.pyramid.shapes,
        field=tokenizer.codec.source,
        num_images=10,
        crops=crops,
        class_names=tuple("0123456789"),
        source=f"{config.data.source}:{split}",
        image_size=config.data.image_size,
        seed=0,
        extra=build.cached_from(config),
    )
    settings = TokenCacheSettings(**{**values, **changes})
    writer = TokenCacheWriter(folder / split, settings)
    count = settings.num_samples
    tokens = np.zeros((count, settings.pyramid.length), int)
    writer.write(tokens, np.arange(count) // crops, np.arange(count))
    writer.close()


def test_a_token_cache_of_the_data_that_the_config_describes(tmp_path):
    config = load("mnist5k", "smallest")
    for split in ("train", "val"):
        make_cache(tmp_path, config, split)
    config.token_cache = str(tmp_path)
    for split in ("train", "val"):
        assert len(build.training_source(config, split, "f" * 64)) == 20


def test_captions_that_are_not_there_are_asked_for_in_vain(tmp_path):
    config = load("mnist5k", "smallest")
    with config.unlocked():
        config.data.caption_length = 8
    with pytest.raises(ValueError, match="is 8, but the pictures of 'mnist5k' have no captions"):
        build.source(config, "val")
    make_cache(tmp_path, config)
    config.token_cache = str(tmp_path)
    with pytest.raises(ValueError, match="is 8, but .* holds no captions; cache the tokens"):
        build.training_source(config, "train", "f" * 64)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.data.update(source="emoji"), "source is 'mnist5k:train' there and 'emoji:tra"),
        (lambda c: c.data.transform.update(flip=True), "transform.flip is False there and True he"),
        (lambda c: c.data.transform.update(resize="short_side"), "transform.resize is 'pad' there"),
        (lambda c: c.data.transform.affine.update(shift=3.0), "transform.affine is .*'shift': 3.0"),
        (lambda c: c.data.update(options=dict(held_out=7)), "options.held_out is None there and 7"),
        (lambda c: c.data.update(image_size=64), "image_size is 32 there and 64 here"),
    ],
)
def test_a_token_cache_of_other_images_is_refused(tmp_path, change, message):
    config = load("mnist5k", "smallest")
    make_cache(tmp_path, config)
    config.token_cache = str(tmp_path)
    config.unlock()
    change(config)
    with pytest.raises(ValueError, match=message):
        build.training_source(config, "train", "f" * 64)


def test_the_train_cache_is_not_taken_for_held_out_data(tmp_path):
    config = load("mnist5k", "smallest")
    make_cache(tmp_path, config)
    # The path of one split: it would be read for both.
    config.token_cache = str(tmp_path / "train")
    build.training_source(config, "train", "f" * 64)
    with pytest.raises(ValueError, match="source is 'mnist5k:train' there and 'mnist5k:val' here"):
        build.training_source(config, "val", "f" * 64)


def test_a_cache_that_says_nothing_of_its_transform_is_taken(tmp_path):
    config = load("mnist5k", "smallest")
    make_cache(tmp_path, config, extra={})
    config.token_cache = str(tmp_path)
    build.training_source(config, "train", "f" * 64)


class Pictures:
    channels = 3

    def __init__(self, names, count=12):
        self.class_names, self.count = tuple(names), count

    def __len__(self):
        return self.count


def test_a_model_is_not_scored_on_data_with_other_classes():
    saved = {"data": build.data_facts(Pictures(["ant", "bee", "cat"]))}
    build.check_same_classes(saved, Pictures(["ant", "bee", "cat"]), "x")
    build.check_same_classes({}, Pictures(["dog"]), "x")
    message = "x was trained on 3 classes, the data has 3, and label 1 was 'bee' and is 'cat'"
    with pytest.raises(ValueError, match=message):
        build.check_same_classes(saved, Pictures(["ant", "cat", "bee"]), "x")
    with pytest.raises(ValueError, match="has 2, and label 2 was 'cat' and is no class"):
        build.check_same_classes(saved, Pictures(["ant", "bee"]), "x")


def test_what_a_config_says_of_the_tokenizer_is_what_the_tokenizer_is():
    config, theirs = load("mnist5k", "smallest"), load("mnist5k", "smallest")
    loaded = build.LoadedTokenizer(None, None, "", theirs)
    theirs.tokenizer.update(dropout=0.1, remat=True)
    build.use_tokenizer(config, loaded)
    assert config.tokenizer.dropout == 0.1
    config = load("mnist5k", "smallest")
    config.tokenizer.vocab_size = 64
    with pytest.raises(ValueError, match="tokenizer.vocab_size is 64, but .* trained with 32; "):
        build.use_tokenizer(config, loaded)
