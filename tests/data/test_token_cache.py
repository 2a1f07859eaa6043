import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from etils import epath

from var_jax.data import Pipeline, make_source, shards
from var_jax.data.token_cache import TokenCache, TokenCacheSettings, TokenCacheWriter, token_field
from var_jax.fields import Field

LENGTH = 1 + 4


def settings(vocab_size=4096, **changes):
    values = {
        "fingerprint": "f" * 64,
        "shapes": ((1, 1), (2, 2)),
        "field": token_field(((1, 1), (2, 2)), vocab_size),
        "num_images": 10,
        "crops": 3,
        "class_names": ("a", "b", "c"),
        "source": "numbers/train",
        "image_size": 32,
        "seed": 0,
    }
    return TokenCacheSettings(**{**values, **changes})


def tokens_of(index, vocab_size=4096):
    """The tokens of sample s are s, s + 1, ..."""
    return (np.asarray(index)[:, None] + np.arange(LENGTH)) % vocab_size


def fill(writer, batch=4, stop=None):
    total = writer.settings.num_samples
    first = writer.next_sample // batch * batch
    for start in range(first, total if stop is None else stop, batch):
        index = np.arange(start, start + batch)  # the last batch is longer than the cache
        writer.write(tokens_of(index), index // writer.settings.crops % 3, index)


def make_cache(directory, **changes):
    writer = TokenCacheWriter(directory, settings(**changes), shard_size=8)
    fill(writer)
    writer.close()
    return writer


def test_roundtrip(tmp_path):
    writer = make_cache(tmp_path / "train")
    assert writer.complete and writer.next_sample == 30
    source = make_source("tokens", "train", path=tmp_path, fingerprint="f" * 64)
    assert len(source) == 30 and source.num_classes == 3 and source.variants == 3
    assert source.settings == settings()
    for i, record in enumerate(source.__getitems__(range(30))):
        assert record["tokens"].dtype == np.uint16 and record["label"] == i // 3 % 3
        np.testing.assert_array_equal(record["tokens"], tokens_of([i])[0])
        np.testing.assert_array_equal(source[i]["tokens"], record["tokens"])
    files = sorted(p.name for p in (tmp_path / "train").iterdir())
    shard_names = [shards.shard_name("tokens", n, 4) for n in range(4)]
    assert files == sorted(["metadata.json", "settings.json", *shard_names])


def test_large_vocabulary_needs_four_bytes(tmp_path):
    writer = TokenCacheWriter(tmp_path, settings(vocab_size=2**17, crops=1, num_images=2))
    writer.write(np.full((2, LENGTH), 2**17 - 1), [0, 1], [0, 1])
    writer.close()
    assert (TokenCache(tmp_path)[1]["tokens"] == 2**17 - 1).all()


def test_every_crop_is_seen_once_in_as_many_epochs(tmp_path):
    make_cache(tmp_path)
    pipeline = Pipeline(TokenCache(tmp_path), None, 5, seed=1)
    assert pipeline.num_records == 10 and pipeline.num_steps == 2
    batches = [pipeline.batch(i) for i in range(6)]
    assert batches[0]["tokens"].dtype == np.int32
    assert batches[0]["label"].dtype == np.int32
    firsts = np.concatenate([b["tokens"][:, 0] for b in batches]).reshape(3, 10)
    np.testing.assert_array_equal(np.sort(firsts.ravel()), np.arange(30))
    for epoch in firsts:
        np.testing.assert_array_equal(np.sort(epoch // 3), np.arange(10))
    assert len(set(firsts[0] % 3)) == 3


def test_evaluation_reads_the_first_crop(tmp_path):
    make_cache(tmp_path)
    batches = list(Pipeline(TokenCache(tmp_path), None, 4, train=False).batches())
    firsts = np.concatenate([b["tokens"][b["mask"], 0] for b in batches])
    np.testing.assert_array_equal(firsts, np.arange(0, 30, 3))


def test_another_tokenizer_is_refused(tmp_path):
    make_cache(tmp_path)
    with pytest.raises(ValueError, match="made with the tokenizer ffffffffffff, not with this"):
        TokenCache(tmp_path, "0" * 64)


def test_unfinished_cache_is_refused_and_resumed(tmp_path):
    writer = TokenCacheWriter(tmp_path, settings(), shard_size=8)
    fill(writer, stop=20)
    assert writer.next_sample == 20
    with pytest.raises(FileNotFoundError, match="unfinished"):
        TokenCache(tmp_path)
    with pytest.raises(ValueError, match="20 of 30 samples"):
        writer.close()
    again = TokenCacheWriter(tmp_path, settings(), shard_size=8)
    assert again.next_sample == 16 and not again.complete  # two whole shards
    fill(again)
    again.close()
    np.testing.assert_array_equal(
        [r["tokens"][0] for r in TokenCache(tmp_path).__getitems__(range(30))], np.arange(30)
    )
    assert TokenCacheWriter(tmp_path, settings(), shard_size=8).next_sample == 30


def test_killed_writer_leaves_no_cache(tmp_path):
    script = """
        import sys, numpy as np
        sys.path.insert(0, sys.argv[2])
        from test_token_cache import TokenCacheWriter, settings, tokens_of
        writer = TokenCacheWriter(sys.argv[1], settings(num_images=10**6), shard_size=64)
        for start in range(0, 10**6, 50):
            index = np.arange(start, start + 50)
            writer.write(tokens_of(index), index % 3, index)
            print(writer.next_sample, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path, os.path.dirname(__file__)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    while int(process.stdout.readline()) < 1000:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(FileNotFoundError, match="unfinished"):
        TokenCache(tmp_path)
    writer = TokenCacheWriter(tmp_path, settings(num_images=10**6), shard_size=64)
    assert writer.next_sample >= 900 and writer.next_sample % 64 == 0


def test_directory_of_another_cache_is_refused(tmp_path):
    make_cache(tmp_path)
    with pytest.raises(ValueError, match="another fingerprint"):
        TokenCacheWriter(tmp_path, settings(fingerprint="0" * 64), shard_size=8)
    with pytest.raises(ValueError, match="another shard_size"):
        TokenCacheWriter(tmp_path, settings(), shard_size=9)


def test_incomplete_copies_are_noticed(tmp_path):
    make_cache(tmp_path)
    shard = tmp_path / shards.shard_name("tokens", 1, 4)
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=f"has {len(data) - 1} bytes, not {len(data)}"):
        TokenCache(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        TokenCache(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        TokenCache(tmp_path / "nowhere")


def test_a_cache_in_a_bucket_is_copied_once(tmp_path, monkeypatch, bucket):
    monkeypatch.setenv("VAR_JAX_CACHE", str(tmp_path / "local"))
    folder = epath.Path(bucket) / "token cache"
    make_cache(folder)
    assert TokenCache(folder)[29]["tokens"][0] == 29
    copies = list((tmp_path / "local").glob("shards/*/*"))
    assert len(copies) == 4
    stamps = [c.stat().st_mtime_ns for c in copies]
    TokenCache(folder)
    assert [c.stat().st_mtime_ns for c in copies] == stamps


def test_wrong_writes(tmp_path):
    writer = TokenCacheWriter(tmp_path, settings(), shard_size=8)
    good = tokens_of([0, 1])
    with pytest.raises(ValueError, match=r"must be \[n, 5\]"):
        writer.write(good[:, :4], [0, 0], [0, 1])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.4095"):
        writer.write(good + 4095, [0, 0], [0, 1])
    with pytest.raises(ValueError, match=r"Labels must lie in 0\.\.2"):
        writer.write(good, [0, 3], [0, 1])
    with pytest.raises(ValueError, match="Sample 4 came where sample 0 was due"):
        writer.write(good, [0, 0], [4, 5])
    with pytest.raises(ValueError, match="vocab_size must be at least 1"):
        settings(vocab_size=0)


def test_wrong_kind_of_directory(tmp_path):
    make_cache(tmp_path / "train")
    with pytest.raises(ValueError, match="holds tokens, not images"):
        make_source("array_record", "train", path=tmp_path)


def test_features_and_bits_come_back_as_they_are_stored(tmp_path):
    rng = np.random.default_rng(0)
    for field, values in (
        (Field("features", (2, 2, 3), "float16"), rng.normal(size=(4, 2, 2, 3))),
        (Field("packed_bits", (7,), "uint8", num_values=256), rng.integers(0, 256, (4, 7))),
    ):
        folder = tmp_path / field.name
        writer = TokenCacheWriter(folder, settings(field=field, num_images=4, crops=1))
        values = values.astype(field.dtype)
        writer.write(values, np.zeros(4, int), np.arange(4))
        writer.close()
        cache = TokenCache(folder)
        assert cache.settings.field == field
        np.testing.assert_array_equal(
            [r[field.name] for r in cache.__getitems__([0, 3])], values[[0, 3]]
        )
