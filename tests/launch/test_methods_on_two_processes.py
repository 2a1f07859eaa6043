"""Methods with other needs than VAR's, as commands on two processes beside one: float targets that
are drawn with noise, and a frozen reference that is cut over the mesh."""

import shutil

import numpy as np
import processes
import pytest
import untrained

from var_jax.train.metrics import read_metrics

METHODS = ("flowar", "cca")


def arguments(folder, method):
    """Of launch.train, for a method over an untrained tokenizer or model."""
    if method == "cca":
        model = untrained.write_model(folder / "model")
        return (
            f"--config.tokenizer_checkpoint={model / 'tokenizer'}",
            f"--config.train.initial_checkpoint={model}",
        )
    tokenizer = untrained.write_tokenizer(folder / "tokenizer", method)
    return (f"--config.tokenizer_checkpoint={tokenizer}",)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_resume_and_draw_as_one(tmp_path, method):
    given = (
        f"--config=configs/family/{method}.py:smallest",
        "--config.sharding=fsdp",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=4",
        "--config.train.num_steps=4",
        "--config.train.save_every=2",
        "--config.train.log_every=1",
        "--config.evaluation.samples_per_class=0",
        *arguments(tmp_path, method),
    )
    runs = {name: tmp_path / name for name in ("one", "two")}
    for name, count in (("one", 1), ("two", 2)):
        processes.run(count, 4 // count, "launch.train", *given, f"--workdir={runs[name]}")
    # Taken up in the middle by one process, from what two wrote.
    moved = tmp_path / "moved"
    shutil.copytree(runs["two"], moved)
    shutil.rmtree(moved / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "model", ignore_errors=True)  # The run has its own reference.
    if method == "cca":
        given = tuple(g for g in given if "tokenizer_checkpoint" not in g)
        given += (f"--config.tokenizer_checkpoint={moved / 'tokenizer'}",)
    processes.run(1, 4, "launch.train", *given, f"--workdir={moved}")

    one, two, again = (read_metrics(w) for w in (*runs.values(), moved))
    names = [n for n in one[-1] if n.startswith(("loss", "eval/loss"))]
    # Four steps, and the evaluation at the end.
    assert len(one) == len(two) == 5 and names
    for a, b in zip(one, two, strict=True):
        for name in set(names) & set(a):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-6)
    for name in names:
        np.testing.assert_allclose(again[-1][name], two[-1][name], rtol=1e-5, atol=1e-6)

    images = []
    for count in (1, 2):
        output = tmp_path / f"{count}.npz"
        processes.run(
            count,
            4 // count,
            "launch.sample",
            f"--checkpoint={runs['one']}",
            "--labels=3,1,4",
            f"--output={output}",
        )
        images.append(np.load(output)["images"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1
    assert len({image.tobytes() for image in images[0]}) == 3
