import pytest
from recipes import TRANSFORMERS, load

from var_jax import build


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
