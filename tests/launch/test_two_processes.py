"""What a pod runs, as commands on two processes of two devices each, beside one process of four.

The mesh is the same, so numbers may differ by rounding only; tokens and labels may not at all.
"""

import json
import shutil
import signal

import numpy as np
import processes
import pytest
from inception_file import write_inception
from PIL import Image

from var_jax.data.token_cache import TokenCache
from var_jax.train.metrics import read_metrics

CONFIG = """
import runpy
def get_config():
    config = runpy.run_path("configs/mnist5k.py")["get_config"]("smallest")
    config.data.update(source="folder", options=dict(path={path!r}))
    config.model.num_classes = 0
    config.tokenizer_train.update(num_steps=3, adversarial_start=1)
    config.train.update(num_steps=30, log_every=1, save_every=10)
    config.evaluation = dict(
        samples_per_class=3, reconstructions=2, rfid={inception!r},
        fid=dict(inception={inception!r}, reference={reference!r}, num_samples=6, batch_size=5),
    )
    return config
"""
#: Of the evaluation the likelihood alone.
NO_PICTURES = (
    "--config.evaluation.samples_per_class=0",
    "--config.evaluation.reconstructions=0",
    "--config.evaluation.fid.inception=",
    "--config.evaluation.fid.reference=",
)
TIMES = ("images_per_second", "teraflops", "data_wait_ms", "goodput", "peak_memory_gib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three classes, Inception weights and a reference: a config of them."""
    folder = tmp_path_factory.mktemp("pod")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for name in ("bars", "blobs", "checks"):
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                picture = np.kron(rng.integers(0, 256, (8, 8)), np.ones((4, 4))).astype(np.uint8)
                Image.fromarray(picture).save(folder / "data" / split / name / f"{i}.png")
    inception = write_inception(folder / "inception.safetensors")
    reference = folder / "reference.npz"
    np.savez(reference, rng.integers(0, 256, (8, 32, 32, 3), np.uint8))
    text = CONFIG.format(
        path=str(folder / "data"), inception=str(inception), reference=str(reference)
    )
    (folder / "config.py").write_text(text)
    return folder


def on_both(folder, module, *arguments, **paths):
    """Runs a command on two processes and on one; {name} in arguments is a path of that run."""
    for name, count in (("two", 2), ("one", 1)):
        places = {k: folder / name / v for k, v in paths.items()}
        values = [a.format(folder=folder, **places) for a in arguments]
        processes.run(count, 4 // count, module, *values)


def metrics(workdir):
    """metrics.jsonl without times."""
    return [
        {k: v for k, v in line.items() if not k.endswith("seconds") and not k.startswith(TIMES)}
        for line in read_metrics(workdir)
    ]


def assert_same_metrics(one, two, rtol=1e-5):
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for a, b in zip(one, two, strict=True):
        for key in a:
            # A Frechet distance is a small difference of large numbers.
            rough = 100 if "fid" in key else 1
            np.testing.assert_allclose(b[key], a[key], rough * rtol, 1e-6, err_msg=key)


@pytest.fixture(scope="module")
def tokenizer(folder):
    on_both(
        folder,
        "launch.train",
        "--model=tokenizer",
        "--config={folder}/config.py",
        "--workdir={tokenizer}",
        tokenizer="tokenizer",
    )
    return folder / "two" / "tokenizer"


@pytest.fixture(scope="module")
def tokens(folder, tokenizer):
    on_both(
        folder,
        "launch.cache_tokens",
        f"--tokenizer={tokenizer}",
        "--output={tokens}",
        "--crops=2",
        "--batch_size=5",
        tokens="tokens",
    )
    return folder / "two" / "tokens"


@pytest.fixture(scope="module")
def transformers(folder, tokenizer, tokens):
    """Workdirs of one training: undisturbed on one process; stopped on two and resumed on two;
    the same, resumed on one."""
    workdirs = [folder / name / "transformer" for name in ("one", "two", "moved")]

    def command(workdir):
        return (
            "launch.train",
            f"--config={folder}/config.py",
            f"--workdir={workdir}",
            f"--config.tokenizer_checkpoint={tokenizer}",
            f"--config.token_cache={tokens}",
        )

    processes.run(1, 4, *command(workdirs[0]))
    pod = processes.start(2, 2, *command(workdirs[1]))
    pod.wait_for("transformer 3/30")
    pod.children[1].send_signal(signal.SIGTERM)
    assert "the same command resumes" in pod.end()[0]
    shutil.copytree(workdirs[1], workdirs[2])
    processes.run(2, 2, *command(workdirs[1]))
    processes.run(1, 4, *command(workdirs[2]))
    return workdirs


def test_the_tokenizer_trains_the_same(folder, tokenizer):
    one, two = (metrics(folder / name / "tokenizer") for name in ("one", "two"))
    assert_same_metrics(one, two, 1e-4)  # Three steps with an adversary and new codes.
    assert {"eval/psnr", "eval/rfid"} <= two[-1].keys()
    assert list((tokenizer / "samples").glob("reconstructions_*.png"))


def test_the_tokens_are_the_same(folder, tokens):
    for split, crops in (("train", 2), ("val", 1)):
        one, two = (
            {f.name: f.read_bytes() for f in (folder / name / "tokens" / split).iterdir()}
            for name in ("one", "two")
        )
        assert one == two and len(one) > 1, (split, crops)


def test_stopped_and_resumed_on_two_or_one_it_trains_the_same(transformers):
    one, two, moved = map(metrics, transformers)
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert_same_metrics(one, two)
    assert_same_metrics(one, moved)
    assert {"eval/loss_mean", "eval/psnr", "eval/fid"} <= two[-1].keys()
    pictures = [
        {f.name: np.asarray(Image.open(f)) for f in (w / "samples").iterdir()} for w in transformers
    ]
    assert pictures[0].keys() == pictures[1].keys() and len(pictures[0]) == 2
    for name, picture in pictures[0].items():
        assert np.abs(picture.astype(int) - pictures[1][name]).max() <= 1


def test_from_images_and_from_another_checkpoint(folder, tokenizer, transformers):
    on_both(
        folder,
        "launch.train",
        "--config={folder}/config.py",
        "--workdir={workdir}",
        f"--config.tokenizer_checkpoint={tokenizer}",
        f"--config.train.initial_checkpoint={transformers[1]}",
        "--config.train.num_steps=3",
        *NO_PICTURES,
        workdir="tuned",
    )
    one, two = (metrics(folder / name / "tuned") for name in ("one", "two"))
    assert_same_metrics(one, two)
    assert two[0]["loss_mean"] < metrics(transformers[1])[0]["loss_mean"] - 0.1


@pytest.mark.slow
def test_four_processes_of_one_device(folder, tokenizer, tokens, transformers):
    workdir = folder / "four"
    processes.run(
        4,
        1,
        "launch.train",
        f"--config={folder}/config.py",
        f"--workdir={workdir}",
        f"--config.tokenizer_checkpoint={tokenizer}",
        f"--config.token_cache={tokens}",
        *NO_PICTURES,
    )
    one, four = metrics(transformers[0]), metrics(workdir)
    left_out = [k for k in one[-1] if k not in four[-1]]
    assert all(k.endswith(("psnr", "fid")) for k in left_out) and len(left_out) == 2
    one[-1] = {k: v for k, v in one[-1].items() if k not in left_out}
    assert_same_metrics(one, four)


def test_scores_and_samples_are_the_same(folder, transformers):
    model = f"--checkpoint={transformers[0]}"
    on_both(folder, "launch.likelihood", model, "--output={out}", "--batch_size=5", out="nll.json")
    one, two = (json.loads((folder / name / "nll.json").read_text()) for name in ("one", "two"))
    assert one["num_examples"] == two["num_examples"] == 9
    assert two["nats"] == pytest.approx(one["nats"], rel=1e-5)

    on_both(
        folder,
        "launch.classify",
        model,
        "--output={out}",
        "--batch_size=5",
        "--copies=2",
        out="classified.json",
    )
    one, two = (
        json.loads((folder / name / "classified.json").read_text()) for name in ("one", "two")
    )
    assert two == one and one["num_examples"] == 9

    on_both(
        folder,
        "launch.sample",
        model,
        "--labels=0,1,2,-1,1",
        "--batch_size=3",
        "--output={out}",
        out="samples.npz",
    )
    one, two = (dict(np.load(folder / name / "samples.npz")) for name in ("one", "two"))
    np.testing.assert_array_equal(one["tokens"], two["tokens"])
    np.testing.assert_array_equal(two["labels"], [0, 1, 2, 3, 1])
    assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1

    on_both(
        folder,
        "launch.cache_samples",
        model,
        "--samples_per_class=2",
        "--batch_size=4",
        "--output={out}",
        out="cached",
    )
    one, two = (
        TokenCache(folder / name / "cached").__getitems__(range(6)) for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        # A level of grey more or less may make another code of a picture's.
        assert a["label"] == b["label"] and (a["tokens"] == b["tokens"]).mean() > 0.8

    on_both(
        folder,
        "launch.evaluate",
        model,
        "--output={out}",
        "--num_samples=13",
        "--part_size=4",
        "--batch_size=4",
        "--reference={folder}/reference.npz",
        "--inception={folder}/inception.safetensors",
        out="scores",
    )
    one, two = (dict(np.load(folder / name / "scores" / "samples.npz")) for name in ("one", "two"))
    np.testing.assert_array_equal(one["labels"], two["labels"])
    assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
    one, two = (
        json.loads((folder / name / "scores" / "scores.json").read_text())
        for name in ("one", "two")
    )
    assert two["num_samples"] == 13
    assert two["fid"] == pytest.approx(one["fid"], rel=1e-3)
