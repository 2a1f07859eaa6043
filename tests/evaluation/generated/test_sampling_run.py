import json

import jax
import numpy as np
import pytest

from var_jax.codecs.residual_vq import ResidualVQ
from var_jax.decoding.guidance import ConstantGuidance, LinearGuidance, PerLevelGuidance
from var_jax.decoding.images import ImageSampler
from var_jax.decoding.next_scale import NextScale
from var_jax.evaluation.generated import sampling_run
from var_jax.evaluation.generated.image_files import open_images
from var_jax.evaluation.generated.sampling_run import SampleFiles, balanced_labels
from var_jax.heads.categorical import CategoricalHead, CategoricalSampling
from var_jax.network import Network
from var_jax.parallel import sharding
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE
from var_jax.transformer.var import VAR

LABELS = balanced_labels(23, 3, seed=0)
SETTINGS = {"sampler": {"cfg": 1.5, "top_k": (3, 4)}, "num_classes": 3}


def image(i):
    return np.random.default_rng([i, int(LABELS[i])]).integers(0, 256, (8, 8, 3), np.uint8)


def draw_part(start, stop):
    for first in range(start, stop, 3):
        images = np.stack([image(i) for i in range(first, min(first + 3, stop))])
        yield images, {"mean": images.mean((1, 2, 3))[:, None].astype(np.float32)}


def test_labels_are_balanced_shuffled_and_the_seeds_own():
    labels = balanced_labels(5000, 1000, seed=3)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), np.full(1000, 5))
    assert (np.diff(labels) < 0).sum() > 2000
    np.testing.assert_array_equal(labels, balanced_labels(5000, 1000, seed=3))
    assert (labels != balanced_labels(5000, 1000, seed=4)).any()
    assert sorted(np.bincount(balanced_labels(7, 3, 0))) == [2, 2, 3]


def test_a_run_killed_anywhere_ends_with_the_same_file(tmp_path):
    whole = SampleFiles(tmp_path / "whole", LABELS, SETTINGS, part_size=5)
    assert whole.draw(draw_part)
    expected = whole.finish().read_bytes()
    images = np.concatenate(list(open_images(tmp_path / "whole" / "samples.npz").batches(50)))
    np.testing.assert_array_equal(images, np.stack([image(i) for i in range(23)]))
    np.testing.assert_array_equal(np.load(whole.path)["labels"], LABELS)
    whole.discard_parts()
    assert not (tmp_path / "whole" / "parts").exists()

    class Killed(BaseException):
        pass

    drawn = []

    def mortal(start, stop):
        drawn.append(start)
        for i, batch in enumerate(draw_part(start, stop)):
            if len(drawn) == 3 and i == 1:
                raise Killed
            yield batch

    killed = SampleFiles(tmp_path / "killed", LABELS, SETTINGS, part_size=5)
    with pytest.raises(Killed):
        killed.draw(mortal)
    # Another part size is not taken: the parts that are there have one already.
    resumed = SampleFiles(tmp_path / "killed", LABELS, SETTINGS, part_size=7)
    assert resumed.part_size == 5 and resumed.missing() == [2, 3, 4]
    assert resumed.draw(mortal) and drawn == [0, 5, 10, 10, 15, 20]
    assert resumed.finish().read_bytes() == expected
    # A finished run draws nothing more.
    again = SampleFiles(tmp_path / "killed", LABELS, SETTINGS)
    assert again.complete and again.draw(None)


def test_hosts_share_the_parts(tmp_path):
    one = SampleFiles(tmp_path / "one", LABELS, SETTINGS, part_size=5)
    one.draw(draw_part)
    drawn = []

    def noted(start, stop):
        drawn.append(start)
        return draw_part(start, stop)

    hosts = [
        SampleFiles(
            tmp_path / "two", LABELS, SETTINGS, part_size=5, process_index=i, process_count=2
        )
        for i in range(2)
    ]
    for host in reversed(hosts):
        host.draw(noted)
    # All draw each part together; each writes its own, and what is written is not drawn again.
    assert drawn == [0, 5, 10, 15, 20, 0, 10, 20]
    means = np.concatenate([f["mean"] for f in hosts[0].features({"mean": 1})])
    np.testing.assert_allclose(means[:, 0], [image(i).mean() for i in range(23)], rtol=1e-6)
    assert SampleFiles(tmp_path / "two", LABELS, SETTINGS, features_of="x").features({}) is None
    part = tmp_path / "two" / "parts" / "000001.features-.npz"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ValueError, match="features-.npz cannot be read .* delete them"):
        list(hosts[0].features({"mean": 1}))
    assert hosts[0].finish().read_bytes() == one.finish().read_bytes()


def test_it_stops_when_asked_and_says_so(tmp_path):
    files = SampleFiles(tmp_path, LABELS, SETTINGS, part_size=5)
    assert not files.draw(draw_part, should_stop=lambda number: number == 1)
    assert files.missing() == [2, 3, 4]


def test_other_settings_and_damaged_parts_are_refused(tmp_path):
    files = SampleFiles(tmp_path, LABELS, SETTINGS, part_size=12)
    other = {**SETTINGS, "sampler": {"cfg": 2.0, "top_k": (3, 4)}}
    with pytest.raises(ValueError, match=r"sampler: cfg 1.5 there, 2.0 here.*--output"):
        SampleFiles(tmp_path, LABELS, other)
    files.draw(draw_part)
    part = tmp_path / "parts" / "000001.npy"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ValueError, match="000001.npy cannot be read .* delete it"):
        files.finish()
    assert not files.complete
    with pytest.raises(ValueError, match="Part 1 came as float32"):
        SampleFiles(tmp_path / "f", LABELS, SETTINGS, part_size=12, process_index=0).draw(
            lambda start, stop: [
                (np.zeros((stop - start, 2, 2, 3), np.uint8 if start == 0 else np.float32), {})
            ]
        )


def test_the_decoder_is_described_level_by_level():
    pyramid = ScalePyramid.from_patch_nums((1, 2, 4))
    linear = sampling_run.describe_decoder(NextScale(LinearGuidance(1.5)), pyramid)
    assert linear["guidance_convention"] == "(1+t) cond - t uncond, t = cfg*k/(K-1)"
    assert linear["guidance_by_level"] == [0.0, 0.75, 1.5]
    assert linear["top_k_by_level"] == [900] * 3 and linear["top_p_by_level"] == [0.96] * 3
    json.dumps(linear)
    constant = sampling_run.describe_decoder(NextScale(ConstantGuidance(1.0)), pyramid)
    assert constant["guidance_convention"].endswith("t = cfg")
    decoder = NextScale(PerLevelGuidance((0.0, 1.0, 2.0)), CategoricalSampling(top_k=(1, 2, 3)))
    levels = sampling_run.describe_decoder(decoder, pyramid)
    assert levels["top_k_by_level"] == [1, 2, 3] and levels["guidance_by_level"] == [0.0, 1.0, 2.0]


def test_the_papers_protocol_and_what_differs_from_it():
    pyramid = ScalePyramid.for_image_size(256)
    paper = sampling_run.paper_protocol(pyramid)
    assert paper["num_samples"] == 50_000 and paper["guidance_by_level"][-1] == 1.5
    assert paper["smooth_by_level"] == [False] * 10
    assert sampling_run.changes_of(paper, paper) == {}
    used = {**paper, "num_samples": 1000}
    assert sampling_run.changes_of(used, paper) == {
        "num_samples": {"protocol": 50_000, "used": 1000}
    }


@pytest.fixture(scope="module")
def model():
    pyramid = ScalePyramid.from_patch_nums((1, 2))
    codec = ResidualVQ(pyramid, 16, 4, phi_ratio=0.0)
    tokenizer = VQVAE(
        codec, 1, channels=4, multipliers=(1, 1), num_res_blocks=1, attention=False, norm_groups=4
    )
    var = VAR(pyramid, num_classes=3, code_dim=4, depth=1, width=32, num_heads=2)
    network, key = Network(var, CategoricalHead(16, 32)), jax.random.key(0)
    shapes = {
        "tokenizer": jax.eval_shape(tokenizer.init_params, key),
        **jax.eval_shape(network.init_params, key),
    }
    # Filled on the host: compiling an initialisation takes longer than the whole test.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32),
        sharding.unbox(shapes),
    )
    return network, tokenizer, params.pop("tokenizer"), params


def test_samples_are_the_same_on_one_and_on_eight_devices(model, tmp_path):
    *modules, params = model
    labels = balanced_labels(20, 3, seed=1)
    drawn = []
    for count in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:count])
        plain = NextScale(LinearGuidance(0.0), CategoricalSampling(top_k=0, top_p=0.0))
        sampler = ImageSampler(*modules, plain, mesh)

        def draw_part(start, stop, sampler=sampler):
            for _, samples in sampler.batches(params, labels[:stop], 5, 8, start):
                yield samples.images, {}

        # The second run was interrupted after two parts of another division into batches.
        files = SampleFiles(tmp_path / str(count), labels, {}, part_size=8 if count == 1 else 6)
        if count == 8:
            assert not files.draw(draw_part, should_stop=lambda number: number == 1)
        assert files.draw(draw_part)
        drawn.append(np.load(files.finish())["arr_0"])
    assert drawn[0].shape == (20, 4, 4, 1)
    difference = np.abs(drawn[0].astype(int) - drawn[1])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # rounding at a half
    assert len({sample.tobytes() for sample in drawn[0]}) > 3
