import numpy as np
import pytest
from pictures import EncodedSource, numbered_source

from var_jax.data import ImageTransform, Pipeline, RandomAffine
from var_jax.data import pipeline as pipeline_module
from var_jax.data.reading import BrokenData
from var_jax.data.transforms import UnreadableImage

PLAIN = ImageTransform(4, channels=1, resize="pad")


def records_of(batches):
    return np.concatenate([b["image"][:, 0, 0, 0] for b in batches])


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_epoch_holds_every_record_once_across_batch_boundaries(in_memory, monkeypatch):
    monkeypatch.setattr(pipeline_module, "MAX_ORDER_IN_MEMORY", 100 if in_memory else 0)
    pipeline_module._order.cache_clear()
    pipeline = Pipeline(numbered_source(23), PLAIN, 8, seed=5)
    seen = records_of(take(pipeline.batches(), 12))[: 4 * 23]
    epochs = seen.reshape(4, 23)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(23))
    assert len({tuple(e) for e in epochs}) == 4
    assert not np.array_equal(epochs[0], np.arange(23))
    other = records_of(take(Pipeline(numbered_source(23), PLAIN, 8, seed=6).batches(), 3))
    assert not np.array_equal(other, seen[:24])
    pipeline_module._order.cache_clear()


def test_the_order_never_changes():
    # A run resumed with another version of NumPy must go on in the same order.
    order = Pipeline(numbered_source(10), PLAIN, 10, seed=7).record_numbers(np.arange(20))
    np.testing.assert_array_equal(
        order, [8, 4, 3, 6, 2, 1, 0, 5, 9, 7, 7, 9, 6, 1, 4, 8, 3, 2, 5, 0]
    )


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_see_the_same_global_batches_also_after_a_resume(hosts):
    source = numbered_source(30)
    augment = ImageTransform(
        4, channels=1, resize="pad", flip=True, affine=RandomAffine(20, 0.2, 1.0)
    )
    one = take(Pipeline(source, augment, 8, seed=1).batches(), 9)  # epochs end in steps 3 and 7
    for start in (0, 2, 5):  # one before, one after an epoch's end
        shares = [
            take(
                Pipeline(source, augment, 8, seed=1, rows=share).batches(start),
                9 - start,
            )
            for share in np.split(np.arange(8), hosts)
        ]
        for step in range(start, 9):
            joined = {
                key: np.concatenate([shares[h][step - start][key] for h in range(hosts)])
                for key in one[step]
            }
            assert_equal(joined, one[step])


def test_fields_and_index():
    batch = Pipeline(numbered_source(10), PLAIN, 4).batch(3)
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (4, 4, 4, 1)
    assert batch["label"].dtype == np.int32 and batch["index"].dtype == np.int64
    np.testing.assert_array_equal(batch["index"], [12, 13, 14, 15])
    assert "mask" not in batch


def test_augmentation_depends_on_the_sample_not_on_the_batch_size():
    source = numbered_source(16)
    noise = lambda record, rng: {"x": rng.random(2)}  # noqa: E731
    small = np.concatenate([Pipeline(source, noise, 4, seed=3).batch(i)["x"] for i in range(4)])
    large = Pipeline(source, noise, 16, seed=3).batch(0)["x"]
    np.testing.assert_array_equal(small, large)
    assert not np.array_equal(large, Pipeline(source, noise, 16, seed=4).batch(0)["x"])


def test_threads_do_not_change_the_order():
    source = numbered_source(19)
    expected = [Pipeline(source, PLAIN, 4, seed=2).batch(i) for i in range(1, 9)]
    for threads, prefetch in ((1, 1), (4, 8)):
        pipeline = Pipeline(source, PLAIN, 4, seed=2, num_threads=threads, prefetch=prefetch)
        for a, b in zip(take(pipeline.batches(1), 8), expected, strict=True):
            assert_equal(a, b)


def test_worker_processes_change_nothing_and_report_unreadable_images():
    source = EncodedSource(11, broken=[4])
    transform = ImageTransform(8, channels=1, resize="pad")
    expected = [Pipeline(source, transform, 4, seed=2).batch(i) for i in range(2, 8)]
    pipeline = Pipeline(source, transform, 4, seed=2, num_workers=2)
    for a, b in zip(take(pipeline.batches(2), 6), expected, strict=True):
        assert_equal(a, b)
    assert list(pipeline.skipped) == [4]


@pytest.mark.parametrize("hosts", [1, 4])
def test_evaluation_counts_every_sample_once_with_equal_steps(hosts):
    source = numbered_source(53)
    pipelines = [
        Pipeline(source, PLAIN, 8, train=False, rows=share)
        for share in np.split(np.arange(8), hosts)
    ]
    batches = [list(p.batches()) for p in pipelines]
    assert {len(b) for b in batches} == {7} and pipelines[0].num_steps == 7
    seen = [b["image"][b["mask"]][:, 0, 0, 0] for host in batches for b in host]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(53))


def test_passes_repeat_each_record_with_its_own_randomness():
    noise = lambda record, rng: {"x": np.array([record["image"][0, 0, 0], rng.random()])}  # noqa: E731
    batches = list(Pipeline(numbered_source(5), noise, 4, train=False, passes=3).batches())
    x = np.concatenate([b["x"] for b in batches])[:15]
    np.testing.assert_array_equal(x[:, 0], np.repeat(np.arange(5), 3))
    assert len(set(x[:, 1])) == 15
    assert sum(b["mask"].sum() for b in batches) == 15


def test_unreadable_image_is_replaced_counted_and_named(caplog):
    source = EncodedSource(10, broken=[3, 4])
    transform = ImageTransform(8, channels=1, resize="pad")
    pipeline = Pipeline(source, transform, 10, seed=0)
    with caplog.at_level("WARNING"):
        values = records_of([pipeline.batch(0), pipeline.batch(1)])
    counts = np.bincount(values, minlength=10)
    assert not counts[[3, 4]].any() and counts.sum() == 20
    assert (np.delete(counts, [3, 4]) >= 2).all()
    assert set(pipeline.skipped) == {3, 4} and "picture 3" in pipeline.skipped[3]
    named = [r for r in caplog.records if "picture 3" in r.getMessage()]
    assert len(named) == 1
    evaluation = Pipeline(source, transform, 10, train=False).batch(0)
    np.testing.assert_array_equal(np.flatnonzero(~evaluation["mask"]), [3, 4])


def test_only_unreadable_images_is_an_error():
    pipeline = Pipeline(EncodedSource(4, broken=range(4)), ImageTransform(8, channels=1), 2)
    with pytest.raises(BrokenData, match="drawn in its place cannot be read"):
        pipeline.batch(0)
    with pytest.raises(BrokenData, match="cannot be read"):
        next(pipeline.batches())


def test_label_out_of_range_names_the_record():
    source = EncodedSource(4, labels=[0, 1, 7, 1])
    with pytest.raises(ValueError, match=r"Label 7 of picture 2 lies outside 0\.\.1"):
        Pipeline(source, ImageTransform(8, channels=1), 4).batch(0)


def test_stop_step():
    pipeline = Pipeline(numbered_source(9), PLAIN, 4)
    assert [b["index"][0] for b in pipeline.batches(2, 5)] == [8, 12, 16]
    assert list(pipeline.batches(5, 5)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 4, "rows": [2, 3, 4]}, r"rows must lie in 0\.\.3, got 2\.\.4"),
        ({"batch_size": 4, "seed": -1}, "seed must be at least 0"),
        ({"batch_size": 4, "prefetch": 0}, "prefetch must be at least 1"),
        ({"batch_size": 4, "passes": 2}, "passes is for one pass"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(numbered_source(9), PLAIN, **options)


def test_unreadable_is_its_own_exception():
    with pytest.raises(UnreadableImage, match="no picture that Pillow can open"):
        ImageTransform(8)({"image": b"no picture"}, np.random.default_rng(0))
