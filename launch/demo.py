"""A page to play with a model: what it draws level by level, from what, and what follows.

python -m launch.demo --checkpoint runs/quickstart/transformer
python -m launch.demo --checkpoint runs/quickstart/transformer --export site

Without --checkpoint it shows the quickstart's model, or else first trains the smallest, which draws
noise. The page is for this machine alone unless --host says otherwise. --export writes a page of
stored pictures in its place, which needs no server. Runs on one host.
"""

from __future__ import annotations

import os
import pathlib
import runpy

from absl import flags

from launch import cli

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer, or its .pth.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address of the page.")
_PORT = flags.DEFINE_integer("port", 7860, "Port of the page; 0 is any that is free.", 0, 65535)
_EXPORT = cli.define_path("export", None, "Folder to write a page without a server to.")
_WORKDIR = cli.define_path("workdir", "runs/demo", "Where the smallest model is trained.")

#: Where the quickstart leaves its model.
_QUICKSTART = "runs/quickstart/transformer"


def main() -> None:
    import jax

    import var_jax
    from var_jax.demo import server
    from var_jax.demo.answers import Answers
    from var_jax.demo.explorer import Explorer
    from var_jax.demo.export import export
    from var_jax.parallel import sharding

    cli.on_one_host()
    if not _EXPORT.value:
        server.check_installed()
        bound = server.bind(_HOST.value, _PORT.value)
    path = _CHECKPOINT.value or _without_checkpoint()
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    model = var_jax.load(path, _TOKENIZER.value, mesh=mesh)
    shown = (_from_here(path), _from_here(_TOKENIZER.value or ""))
    answers = Answers(Explorer(model), *shown, small=bool(_EXPORT.value))
    if answers.explorer.reason:
        print(answers.explorer.reason)
    if _EXPORT.value:
        count = export(answers, _EXPORT.value)
        print(f"Wrote {count} drawings; open {_EXPORT.value}/index.html.")
        return
    print("Compiling, so that the page answers at once.", flush=True)
    answers.warm_up()
    loopback = _HOST.value in server.LOOPBACK
    if not loopback:
        print(
            f"Whoever reaches {_HOST.value} can use the page, which has no password and shows the "
            "path of the checkpoint; it does not check by which name it is called."
        )
    app = server.application(answers, server.LOOPBACK if loopback else None)
    port = bound.getsockname()[1]
    print(f"The page is at http://{_HOST.value}:{port}/ until you press Ctrl-C.", flush=True)
    server.serve(app, bound)


def _without_checkpoint() -> str:
    """The quickstart's model, or the smallest, trained now."""
    from ml_collections import ConfigDict

    from var_jax.studies.training_run import train_both

    if os.path.isdir(_QUICKSTART):
        print(f"Showing the quickstart's model, {_QUICKSTART}.")
        return os.path.abspath(_QUICKSTART)
    print(
        "There is no --checkpoint and no runs/quickstart, so the smallest model is trained now, "
        f"in {_WORKDIR.value}. It draws noise; `bash launch/quickstart.sh` makes one that draws "
        "digits.",
        flush=True,
    )
    file, _, variant = cli.find_config("configs/mnist5k.py:smallest").rpartition(":")
    config: ConfigDict = runpy.run_path(file)["get_config"](variant)
    return str(train_both(config, _WORKDIR.value, crops=1))


def _from_here(path: str) -> str:
    """A path as one would type it here."""
    here = pathlib.Path.cwd()
    local = path and "://" not in path and pathlib.Path(path).is_relative_to(here)
    return str(pathlib.Path(path).relative_to(here)) if local else path


if __name__ == "__main__":
    cli.run(main)
