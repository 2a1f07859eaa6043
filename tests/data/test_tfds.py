import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import encode

from var_jax.data import Pipeline, make_source, make_transform


class ToyPictures(tfds.core.GeneratorBasedBuilder):
    """Ten grey pictures in two classes; picture i has the value i."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "number": tfds.features.Scalar(np.int64),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            data = io.BytesIO(encode(np.full((12, 12, 3), i, np.uint8)))
            yield i, {"image": data, "label": i % 2, "number": i}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    ToyPictures(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_reads_encoded_bytes(data_dir):
    source = make_source("tfds", "train", builder="toy_pictures:1.0.0", data_dir=data_dir)
    assert len(source) == 10 and source.class_names == ("cat", "dog") and source.channels == 3
    assert isinstance(source[0]["image"], bytes)
    batch = Pipeline(source, make_transform(source, 8, True), 10).batch(0)
    values = batch["image"][:, 0, 0, 0]
    np.testing.assert_array_equal(np.sort(values), np.arange(10))
    np.testing.assert_array_equal(batch["label"], values % 2)
    assert len(pickle.loads(pickle.dumps(source))) == 10
    assert source.name(3) == "toy_pictures/1.0.0/train[3]"


def test_directory_splits_and_missing_labels(data_dir):
    path = str(data_dir / "toy_pictures" / "1.0.0")
    assert len(make_source("tfds", "val", builder=path)) == 4
    assert len(make_source("tfds", "train[:30%]", builder=path)) == 3
    unlabelled = make_source("tfds", "train", builder=path, label_key=None)
    assert unlabelled.class_names == ("all",) and unlabelled[3]["label"] == 0


def test_errors(data_dir, tmp_path):
    path = str(data_dir / "toy_pictures" / "1.0.0")
    with pytest.raises(ValueError, match="no split 'exam'"):
        make_source("tfds", "exam", builder=path)
    with pytest.raises(ValueError, match="no feature 'picture'; it has image, label, number"):
        make_source("tfds", "train", builder=path, image_key="picture")
    with pytest.raises(ValueError, match="no class table"):
        make_source("tfds", "train", builder=path, label_key="number")
    with pytest.raises(FileNotFoundError, match="no tensorflow-datasets builder no_such_set"):
        make_source("tfds", "train", builder="no_such_set", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not prepared in"):
        make_source("tfds", "train", builder="toy_pictures", data_dir=tmp_path)
