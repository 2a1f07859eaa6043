"""A model of texts, whose encoder lies in a bucket, as commands on two processes and on one."""

import pathlib

import methods
import numpy as np
import processes
import pytest
import t5_folder
from etils import epath
from text_features_config import get_config
from untrained import write_model

from var_jax import build
from var_jax.train.metrics import read_metrics

CONFIG = pathlib.Path(__file__).parents[1] / "text_features_config.py"


@pytest.mark.slow
def test_it_trains_and_draws_on_two_processes_as_on_one(tmp_path, bucket):
    t5_folder.write(tmp_path / "t5")
    write_model(tmp_path / "model", get_config(tmp_path))
    methods.write_tokens(
        tmp_path / "tokens", build.load_tokenizer(tmp_path / "model" / "tokenizer")
    )
    encoder = epath.Path(bucket) / "flan-t5"
    for path in (tmp_path / "t5").iterdir():
        (encoder / path.name).write_bytes(path.read_bytes())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red bird\na green bird\n\n")
    losses, images = [], []
    for count, mesh in ((1, (1, 1, 1)), (2, (1, 2, 2))):
        workdir, drawn = tmp_path / str(count), tmp_path / f"{count}.npz"
        axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
        processes.run(
            count,
            int(np.prod(mesh)) // count,
            "launch.train",
            f"--config={CONFIG}:{tmp_path}",
            *(f"--config.mesh.{name}={size}" for name, size in axes),
            f"--config.model.conditioner.encoder={encoder}",
            f"--workdir={workdir}",
        )
        lines = read_metrics(workdir)
        held_out = [lines[-1][name] for name in sorted(lines[-1]) if "eval/loss" in name]
        losses.append([line["loss"] for line in lines if "loss" in line] + held_out)
        processes.run(
            count,
            1,
            "launch.sample",
            f"--checkpoint={tmp_path / '1'}",
            f"--prompts={prompts}",
            "--negative=green",
            f"--output={drawn}",
        )
        images.append(np.load(drawn)["images"].astype(int))
    assert len(losses[0]) > 3 and np.ptp(losses[0][:3]) > 1e-3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert (images[0][0] != images[0][1]).any()
    assert np.abs(images[1] - images[0]).max() <= 1
