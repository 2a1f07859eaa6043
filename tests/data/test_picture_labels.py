import numpy as np
import pytest

from var_jax.data.picture_labels import read_labels

CLASSES = ["ant", "bee", "golden cow"]
PICTURES = ["0001.jpg", "0002.jpg", "0003.jpg"]


def read(tmp_path, text, pictures=PICTURES, classes=CLASSES):
    path = tmp_path / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_labels(path, pictures, classes))


@pytest.mark.parametrize(
    "text",
    [
        "golden cow\nant\nbee\n",
        "golden cow\r\nant\r\nbee",
        "2\n0\n1\n",
        "0003.jpg bee\n0001.jpg golden cow\n0002.jpg ant\n",
        "0003.jpg\tbee\n0001.jpg\tgolden cow\n0002.jpg\tant\n",
        "0003,bee\n0001,golden cow\n0002,ant\n",
        "val/0003.jpg 1\nval/0001.jpg 2\nval/0002.jpg 0\n",
        "filename,label\n0003.jpg,bee\n0001.jpg,golden cow\n0002.jpg,ant\n",
        'class,file\nbee,0003.jpg\n"golden cow",0001.jpg\nant,0002.jpg\n',
        "ImageId,PredictionString\n0003,bee 1 2 3 4\n0001,golden cow\n0002,ant 1 2 3 4 ant 5 6 7 8",
        "\ufeff0003.jpg bee\n\n0001.jpg golden cow\n0002.jpg ant\n",
    ],
)
def test_forms(tmp_path, text):
    pictures = PICTURES if "val/" not in text else [f"val/{name}" for name in PICTURES]
    assert read(tmp_path, text, pictures) == [2, 0, 1]


def test_kaggle(tmp_path):
    text = (
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n03995372 85 1 499 272 \n"
        "ILSVRC2012_val_00000001,n03481172 131 0 499 254 n03481172 1 2 3 4 \n"
    )
    names = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2)]
    assert read(tmp_path, text, names, ["n03481172", "n03995372"]) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\nbee\n", "labels of 2 pictures, but there are 3"),
        ("ant\nbee\nant\nant\n", "labels of 4 pictures, but there are 3"),
        ("ant\nbee\ndog\n", "'dog' of .* is no class"),
        # ImageNet's development kit counts from 1, in another order.
        ("1\n2\n3\n", r"numbers 1\.\.3, and not 0\.\.2: lists that count from 1"),
        ("1\n2\n1\n", "lists that count from 1"),
        ("0\n1\n3\n", r"numbers 0\.\.3, and not 0\.\.2"),
        ("0001.jpg 1\n0002.jpg 2\n0003.jpg 3\n", "lists that count from 1"),
        ("0001.jpg ant\n0002.jpg bee\n", r"no label for '0003.jpg' \(1 of 3"),
        ("0001.jpg ant\n0002.jpg bee\n0003.jpg ant\n0002.jpg ant\n", "names '0002.jpg' twice"),
        ("0001.jpg ant\n0002.jpg bee\n0003.jpg ant\n0009.jpg ant\n", "'0009.jpg' .* no picture"),
        ("0009.jpg ant\n0001.jpg ant\n0002.jpg bee\n0003.jpg ant\n", "'0009.jpg' .* no picture"),
        ("0001.jpg ant\n0002.jpg\n0003.jpg bee\n", "line '0002.jpg' .* no file name and class"),
        ("0001.jpg ant\n0002.jpg dog\n0003.jpg bee\n", "'dog' of .* is no class"),
        ("", "holds no line"),
        (b"\xff\xfe\x00a", "no UTF-8 text"),
        ("<html><body>not found</body></html>", "names no picture and no class"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_an_order_that_is_not_certain(tmp_path):
    pictures = ["1.jpg", "2.jpg", "10.jpg"]
    with pytest.raises(ValueError, match="no order that is certain"):
        read(tmp_path, "ant\nbee\nant\n", pictures)
    assert read(tmp_path, "10 ant\n1 bee\n2 ant\n", pictures) == [1, 0, 0]
    with pytest.raises(ValueError, match="no order that is certain"):
        read(tmp_path, "ant\nbee\n", ["a/1.jpg", "b/1.jpg"])


def test_names_that_several_pictures_have(tmp_path):
    pictures = ["a/1.jpg", "b/1.jpg"]
    with pytest.raises(ValueError, match="'1.jpg' of .* is the name of several pictures"):
        read(tmp_path, "1.jpg ant\n1.jpg bee\n", pictures)
    assert read(tmp_path, "b/1.jpg ant\na/1.jpg bee\n", pictures) == [1, 0]


def test_classes_whose_names_are_numbers(tmp_path):
    classes = ["1", "10", "2"]
    assert read(tmp_path, "1\n10\n2\n", classes=classes) == [0, 1, 2]
    np.testing.assert_array_equal(read(tmp_path, "2\n2\n1\n", classes=classes), [2, 2, 0])


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_labels(tmp_path / "nowhere.txt", PICTURES, CLASSES)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_labels(tmp_path, PICTURES, CLASSES)
