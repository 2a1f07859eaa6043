import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import encode
from PIL import Image

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
                    "caption": tfds.features.Text(),
                    "lines": tfds.features.Sequence(tfds.features.Text()),
                    "captions": tfds.features.Sequence(
                        {"id": np.int64, "text": tfds.features.Text()}
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            data = io.BytesIO(encode(np.full((12, 12, 3), i, np.uint8)))
            told = [{"id": j, "text": f"{i} told {j}"} for j in range(i % 3)]
            texts = {"caption": f"zéro  {i}", "lines": [f"{i}", ""], "captions": told}
            yield i, {"image": data, "label": i % 2, "number": i, **texts}


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


@pytest.mark.parametrize(
    "key, expected",
    [
        ("caption", lambda i: (f"zéro {i}",)),
        ("lines", lambda i: (f"{i}",)),
        ("captions/text", lambda i: tuple(f"{i} told {j}" for j in range(i % 3))),
    ],
)
def test_captions(data_dir, key, expected):
    options = dict(builder="toy_pictures:1.0.0", data_dir=data_dir, caption_key=key)
    source = make_source("tfds", "train", **options)
    assert source.captioned
    for record in (*map(source.__getitem__, range(10)), *source.__getitems__([3, 1])):
        number = int(np.array(Image.open(io.BytesIO(record["image"])))[0, 0, 0])
        assert record["captions"] == expected(number)
    plain = make_source("tfds", "train", builder="toy_pictures:1.0.0", data_dir=data_dir)
    assert not plain.captioned and "captions" not in plain[0]


@pytest.mark.parametrize(
    "key, message",
    [
        ("number", "'number' of .* is no text"),
        ("captions/id", "'captions/id' of .* is no text"),
        ("captions", "'captions' of .* is no text"),
        ("captions/words", "no feature 'captions/words'; at 'words' it has id, text"),
        ("words", "no feature 'words'; at 'words' it has caption, captions"),
        ("caption/text", "no feature 'caption/text'; at 'text' it has none"),
    ],
)
def test_what_is_no_caption(data_dir, key, message):
    path = str(data_dir / "toy_pictures" / "1.0.0")
    with pytest.raises(ValueError, match=message):
        make_source("tfds", "train", builder=path, caption_key=key)


def test_errors(data_dir, tmp_path):
    path = str(data_dir / "toy_pictures" / "1.0.0")
    with pytest.raises(ValueError, match="no split 'exam'"):
        make_source("tfds", "exam", builder=path)
    with pytest.raises(ValueError, match="no feature 'picture'; it has caption, captions, image"):
        make_source("tfds", "train", builder=path, image_key="picture")
    with pytest.raises(ValueError, match="no class table"):
        make_source("tfds", "train", builder=path, label_key="number")
    with pytest.raises(FileNotFoundError, match="no tensorflow-datasets builder no_such_set"):
        make_source("tfds", "train", builder="no_such_set", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="is not prepared in"):
        make_source("tfds", "train", builder="toy_pictures", data_dir=tmp_path)
