import numpy as np
import pytest

from var_jax.data import emoji, make_source


def test_keys_ignore_variation_selectors_and_skin_tones():
    assert emoji._key("2764-fe0f-200d-1f525") == "2764-200D-1F525"
    assert emoji._base("1F44D-1F3FB") == emoji._base("1F44D") == "1F44D"


def test_emoji_classes_split_and_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAR_JAX_CACHE", str(tmp_path))
    train = make_source("emoji", "train", size=16)
    files = list(tmp_path.iterdir())
    assert len(files) == 1  # one finished file, no temporary one
    stamp = files[0].stat().st_mtime_ns
    val = make_source("emoji", "val", size=16)
    assert files[0].stat().st_mtime_ns == stamp
    assert len(train) + len(val) > 3500 and 100 < len(val) < 400
    assert train.class_names == emoji.GROUPS and len(emoji.GROUPS) == 9
    assert train.images.shape[1:] == (16, 16, 3) and train.images.dtype == np.uint8
    assert np.bincount(train.labels, minlength=9).min() > 50
    assert np.bincount(val.labels, minlength=9).min() > 0
    assert min(map(len, train.captions)) >= 2 and len(val.captions) == len(val)
    assert train[0]["captions"][-1] == train.class_names[train.labels[0]].lower()
    assert (train.images[:, 0, 0] == 255).mean() > 0.9  # white corners
    _, _, keys = emoji._load(16)
    assert len(keys) == len(train) + len(val)
    again = make_source("emoji", "val", size=16)
    np.testing.assert_array_equal(val.images, again.images)
    assert emoji.GROUPS[train.labels[0]] in emoji.GROUPS
    with pytest.raises(ValueError, match="at least 1 px"):
        make_source("emoji", "val", size=0)


def test_captions_are_the_unicode_names_with_skin_tones_and_the_group():
    hands = "1F469-1F3FD-200D-1F91D-200D-1F468-1F3FF"
    keys = ["1F9D1-1F3FF-200D-1F692", "1F1EA-1F1ED", "1F605", hands]
    labels = [emoji.GROUPS.index(g) for g in ("People & Body", "Flags", "Smileys & Emotion")]
    found = emoji._captions(keys, [*labels, labels[0]])
    assert found[0] == ("firefighter, dark skin tone", "people & body")
    assert found[1] == ("western sahara flag", "flags")
    assert found[2][1:] == ("sweat smile", "smileys & emotion")
    assert found[3][0].endswith("medium skin tone, dark skin tone")
