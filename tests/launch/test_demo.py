"""The command of the page, from a folder with nothing in it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

from commands import run_cases
from untrained import write_model

ROOT = pathlib.Path(__file__).parents[2]


def test_without_a_checkpoint_it_trains_the_smallest_and_serves_it(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.demo", "--port=0", "--single_host"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        said = ""
        while "until you press Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert "the smallest model is trained now" in said
        [address] = re.findall(r"http://127\.0\.0\.1:\d+/", said)
        with urllib.request.urlopen(f"{address}data.js") as reply:
            facts = json.loads(reply.read().decode().split("=", 1)[1].rstrip(";\n"))
        assert facts["name"] == "runs/demo/transformer" and facts["classes"][3] == "3"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_it_exports_and_tells_mistakes(tmp_path):
    model = write_model(tmp_path / "model")
    given = f"--checkpoint={model}"
    errors = run_cases(
        "launch.demo",
        {
            "export": [given, f"--export={tmp_path / 'site'}"],
            "tokenizer": [f"{given}/tokenizer", f"--export={tmp_path / 'x'}"],
            "nothing": [f"{given}/nothing", "--port=0"],
            "host": [given, "--host=192.0.2.1"],
        },
    )
    assert "This is a tokenizer alone" in errors.pop("tokenizer")
    assert str(model / "nothing") in errors.pop("nothing")
    assert "The page cannot be at 192.0.2.1:7860" in errors.pop("host")
    assert not errors and (tmp_path / "site/index.html").is_file()
    assert (tmp_path / "site/data.js").stat().st_size < 5e6
    assert not (tmp_path / "x").exists()
