import numpy as np
import pytest
from pictures import EncodedSource, encode, make_folder, numbered_source

from var_jax.data import ImageTransform, Pipeline, make_source, make_transform, reading, shards
from var_jax.data.reading import BrokenData
from var_jax.paths import write_json

PLAIN = ImageTransform(8, channels=1, resize="pad")


class Unreliable(EncodedSource):
    """Raises `error` for the records of `failing`, so many times each."""

    def __init__(self, count, failing, error, times=10**9, together=False):
        super().__init__(count)
        self.failing = dict.fromkeys(failing, times)
        self.error = error
        if together:
            self.__getitems__ = lambda indices: [self[i] for i in indices]

    def __getitem__(self, index):
        if self.failing.get(index, 0) > 0:
            self.failing[index] -= 1
            raise self.error
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """No test waits; the list says how long it would have."""
    slept = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    return slept


def same(a, b):
    for key in b:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        FileNotFoundError(2, "No such file"),
        PermissionError(13, "Permission denied"),
        TimeoutError("read timed out"),
        RuntimeError("Corrupted Riegeli/records file"),
        ValueError("cannot decode the example"),
        KeyError("label"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_record_that_cannot_be_read_is_skipped_named_and_counted(error, together, caplog):
    source = Unreliable(20, [3, 7], error, together=together)
    pipeline = Pipeline(source, PLAIN, 10, seed=0)
    with caplog.at_level("WARNING"):
        batches = [pipeline.batch(i) for i in range(4)]
    seen = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
    assert not np.isin([3, 7], seen).any() and len(seen) == 40
    assert sorted(pipeline.skipped) == [3, 7]
    assert "picture 3" in pipeline.skipped[3] and type(error).__name__ in pipeline.skipped[3]
    said = [r for r in caplog.records if "unreadable record picture 3" in r.getMessage()]
    assert len(said) == 1


def test_an_error_that_passes_changes_nothing(waits):
    expected = [Pipeline(EncodedSource(12), PLAIN, 4, seed=3).batch(i) for i in range(6)]
    for times in (1, 2, 3):
        source = Unreliable(12, range(12), OSError(116, "Stale file handle"), times)
        pipeline = Pipeline(source, PLAIN, 4, seed=3)
        for i, batch in enumerate(expected):
            same(pipeline.batch(i), batch)
        assert not pipeline.skipped
    assert sum(waits) > 0


def test_half_a_file_is_read_again():
    class Half(EncodedSource):
        first = True

        def __getitem__(self, index):
            record = super().__getitem__(index)
            if index == 2 and self.first:
                self.first = False
                return {**record, "image": record["image"][:40]}
            return record

    pipeline = Pipeline(Half(6), PLAIN, 6)
    same(pipeline.batch(0), Pipeline(EncodedSource(6), PLAIN, 6).batch(0))
    assert not pipeline.skipped


def test_what_is_gone_is_not_waited_for_again_and_again(waits):
    reader = reading.PatientReader(Unreliable(4, [1], OSError(5, "Input/output error")))
    for _ in range(3):
        with pytest.raises(reading.UnreadableRecord, match="OSError.*Input/output"):
            reader.read(1)
    assert waits == list(reading.RETRIES)
    waits.clear()
    reader = reading.PatientReader(Unreliable(4, [1], FileNotFoundError(2, "gone")))
    with pytest.raises(reading.UnreadableRecord):
        reader.read(1)
    assert waits == list(reading.RETRIES_IF_LASTING)


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_batches_do_not_hang_on_the_history(hosts, start):
    """The replacement is a function of (seed, sample): for every host, resume and order."""

    def make(host=0, count=1):
        return Pipeline(
            EncodedSource(16, broken=[2, 3, 11]),
            ImageTransform(8, channels=1, resize="pad", flip=True),
            8,
            seed=4,
            rows=np.arange(8).reshape(count, -1)[host],
        )

    whole = [make().batch(i) for i in range(8)]
    parts = [make(host, hosts) for host in range(hosts)]
    for i in reversed(range(start, 8)):
        shares = [part.batch(i) for part in parts]
        joined = {key: np.concatenate([s[key] for s in shares]) for key in whole[i]}
        same(joined, whole[i])
    for share in parts:
        assert set(share.skipped) <= {2, 3, 11}
    streamed = make().batches(start, 8)
    for batch, expected in zip(streamed, whole[start:], strict=True):
        same(batch, expected)


def test_a_damaged_class_is_not_replaced_by_its_neighbour():
    source = EncodedSource(200, broken=range(50, 52))
    pipeline = Pipeline(source, PLAIN, 100, seed=0)
    seen = np.concatenate([pipeline.batch(i)["image"][:, 0, 0, 0] for i in range(40)])
    counts = np.bincount(seen, minlength=200)
    assert counts[[50, 51]].sum() == 0 and counts.max() <= 26 and counts.sum() == 4000


def test_how_many_are_put_up_with():
    assert [reading.allowed(n) for n in (1, 2, 10, 100, 5000, 1_281_167)] == [
        0,
        1,
        5,
        10,
        50,
        12_811,
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_end_the_run_in_a_sentence(workers):
    source = EncodedSource(100, broken=range(0, 100, 8))
    pipeline = Pipeline(source, PLAIN, 20, num_workers=workers)
    with pytest.raises(BrokenData, match="1[1-3] of 100 records cannot be read, the last one p"):
        list(pipeline.batches(0, 20))
    nothing = Pipeline(EncodedSource(9, broken=range(9)), PLAIN, 3, num_workers=workers)
    with pytest.raises(BrokenData, match="records drawn in its place cannot be read"):
        next(nothing.batches())


def test_a_picture_too_large_to_pad_does_not_end_a_run():
    source = EncodedSource(8)
    source.records[5] = encode(np.zeros((9, 9), np.uint8))
    pipeline = Pipeline(source, PLAIN, 8)
    pipeline.batch(0)
    assert "9x9 px does not fit into size 8" in pipeline.skipped[5]


def test_files_that_vanish_or_change_while_a_run_reads_them(tmp_path):
    make_folder(tmp_path, {"ant": 6, "bee": 6})
    source = make_source("folder", "train", path=tmp_path)
    (tmp_path / "ant" / "3.jpg").unlink()
    (tmp_path / "bee" / "2.jpg").unlink()
    (tmp_path / "bee" / "2.jpg").mkdir()
    whole = (tmp_path / "bee" / "4.jpg").read_bytes()
    (tmp_path / "bee" / "4.jpg").write_bytes(whole[: len(whole) // 2])
    pipeline = Pipeline(source, make_transform(source, 8, True), 12)
    pipeline.batch(0)
    reasons = {number: reason.split(": ")[1] for number, reason in pipeline.skipped.items()}
    assert reasons == {3: "FileNotFoundError", 8: "IsADirectoryError", 10: "OSError"}


def written(tmp_path, count=30):
    records = [
        shards.pack_image(encode(np.full((8, 8), i, np.uint8)), i % 2, f"{i}.png")
        for i in range(count)
    ]
    half = count // 2
    entries = [
        shards.write_shard(tmp_path / shards.shard_name("train", n, 2), part, compress=False)
        for n, part in enumerate((records[:half], records[half:]))
    ]
    table = {"kind": "images", "class_names": ["a", "b"], "labels": [0, 1], "shards": entries}
    write_json(tmp_path / shards.METADATA, table)
    return records


def damage(path, part):
    data = bytearray(path.read_bytes())
    data[data.find(part) + 4] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_of_a_shard(tmp_path, workers):
    records = written(tmp_path)
    damage(tmp_path / shards.shard_name("train", 0, 2), records[4])
    damage(tmp_path / shards.shard_name("train", 1, 2), records[20])
    source = shards.ImageShards(tmp_path)
    assert source.name(3).startswith("3.png (") and source.name(4) == f"{tmp_path}[4]"
    for start in (3,) if workers else (0, 3):
        pipeline = Pipeline(source, PLAIN, 10, seed=1, num_workers=workers)
        batches = list(pipeline.batches(start, start + 3))
        seen = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
        assert not np.isin([4, 20], seen).any()
        assert sorted(pipeline.skipped) == [4, 20]
        assert "hash mismatch" in pipeline.skipped[4]


def test_a_shard_that_goes_away(tmp_path):
    written(tmp_path)
    source = shards.ImageShards(tmp_path)
    (tmp_path / shards.shard_name("train", 1, 2)).unlink()
    with pytest.raises(BrokenData, match=r"records cannot be read, the last one .*\[\d+\]"):
        pipeline = Pipeline(source, PLAIN, 10)
        for step in range(3):
            pipeline.batch(step)


def test_evaluation_leaves_it_out():
    source = Unreliable(10, [6], OSError(5, "Input/output error"))
    batch = Pipeline(source, PLAIN, 10, train=False).batch(0)
    np.testing.assert_array_equal(np.flatnonzero(~batch["mask"]), [6])


def test_readable_sources_are_read_as_before():
    source = numbered_source(30)
    a = Pipeline(source, ImageTransform(4, channels=1, resize="pad"), 10, seed=9)
    np.testing.assert_array_equal(
        a.batch(2)["image"][:, 0, 0, 0], a.record_numbers(a.sample_numbers(2))
    )
