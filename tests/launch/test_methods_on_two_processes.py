"""Methods with other needs than each other's, as commands on two processes beside one device:
codes; float targets that are drawn with noise; a frozen reference that is cut as what trains; an
adapter of a base; passes that are not over levels.
"""

import shutil

import methods
import numpy as np
import processes
import pytest

from var_jax.train.metrics import read_metrics

#: Tokens of VAR are also those of test_two_processes.py.
_SLOW = ("mnist5k", *(f"family/{name}" for name in ("flowar", "lora", "mar", "xar")))
METHODS = [*(pytest.param(name, marks=pytest.mark.slow) for name in _SLOW), "family/cca"]


@pytest.fixture(scope="module", params=METHODS)
def method(request, tmp_path_factory):
    """(folder, train, workdir of one device): `train` runs the command of a method."""
    folder = tmp_path_factory.mktemp("method")
    given = {**methods.prepare(folder, request.param), "evaluation.likelihood": True}

    def train(name, mesh, num_processes, **other):
        axes = zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh, strict=True)
        arguments = methods.flags(request.param, {**given, **dict(axes), **other})
        processes.run(
            num_processes,
            int(np.prod(mesh)) // num_processes,
            "launch.train",
            *arguments,
            f"--workdir={folder / name}",
        )
        return folder / name

    return folder, train, train("one", (1, 1, 1), 1)


def losses(workdir):
    """Of each step, and of the evaluation at the end."""
    lines = read_metrics(workdir)
    names = [name for name in lines[-1] if name.startswith("eval/loss")]
    steps = [line["loss"] for line in lines if "loss" in line]
    assert names and len(steps) == methods.SETTINGS["train.num_steps"] and np.ptp(steps) > 1e-3
    found = [*steps, *(lines[-1][name] for name in names)]
    assert np.isfinite(found).all()
    return found


def assert_same(workdir, one):
    np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5, atol=1e-6)


def test_hosts_that_hold_parts_of_the_same_examples(method):
    """They must load the same; one device goes on from what they wrote."""
    folder, train, one = method
    two = train("two", (1, 1, 4), 2)
    assert_same(two, one)
    # Taken up in the middle where nothing else is left: a run has its tokenizer and reference.
    moved, model = folder / "moved", folder / "model"
    shutil.copytree(two, moved)
    shutil.rmtree(moved / "checkpoints" / "6")
    model.rename(folder / "gone")
    train("moved", (1, 1, 1), 1, tokenizer_checkpoint=moved / "tokenizer")
    (folder / "gone").rename(model)
    assert_same(moved, one)


def test_hosts_that_hold_parts_of_the_parameters(method):
    _, train, one = method
    assert_same(train("cut", (1, 2, 2), 2), one)


def test_two_processes_draw_as_one(method):
    folder, _, workdir = method
    images = []
    for count in (1, 2):
        output = folder / f"{count}.npz"
        labels = ("--labels=3,1,4", f"--output={output}")
        processes.run(count, 4 // count, "launch.sample", f"--checkpoint={workdir}", *labels)
        images.append(np.load(output)["images"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1
    assert len({image.tobytes() for image in images[0]}) == 3
