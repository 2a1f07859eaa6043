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
