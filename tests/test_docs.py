"""What the documentation says is there: commands, flags, config keys, methods, files."""

import ast
import functools
import pathlib
import re
import runpy
import shlex

import pytest
import setuptools
from ml_collections import ConfigDict

import var_jax
from var_jax import build
from var_jax.build.registry import METHODS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
#: Configs say how to run them.
HEADERS = sorted(ROOT.glob("configs/**/*.py"))
#: Functions of launch.cli that define flags.
SHARED = ("define_inception_flags", "define_allow_mismatched_reference", "define_sampling_flags")
#: Of absl's own flags those that are worth writing down.
OF_ABSL = {"help", "helpfull"}


def text_of(path):
    text = path.read_text()
    return ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else text


def commands(text):
    """(module, arguments) of every command, in blocks of code and in `code` between words.

    A name without arguments counts too: `launch.sample`.
    """
    text = re.sub(r"\\\n\s*", " ", text)
    spans = re.sub(r"^(```|~~~).*?^\1|^ {4}.*?$", "", text, flags=re.M | re.S)
    lines = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", spans)]
    lines += text.splitlines()
    for line in lines:
        line = line.split(" #")[0].split("`")[0] if line.startswith("    ") else line
        for found in re.finditer(r"(?<![\w./])((?:launch|benchmarks)\.[a-z_]+)\b([^`|;]*)", line):
            yield found[1], found[2]


@functools.cache
def defined(module):
    """The flags that a module defines, those of the functions of launch.cli that it calls too."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    return flags_in(tree)


def flags_in(tree):
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called.startswith("DEFINE_") or called == "define_path":
            if isinstance(node.args[0], ast.Constant):  # No page names one of those made in a loop.
                names.add(node.args[0].value)
        elif called.startswith("define_"):
            names |= shared()[called]
    return names


@functools.cache
def shared():
    tree = ast.parse((ROOT / "launch/cli.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found = {name: flags_in(node) for name, node in functions.items() if name in SHARED}
    rest = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return {**found, "": flags_in(ast.Module(rest, []))}


@pytest.mark.parametrize("path", [*PAGES, *HEADERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_their_flags_are_there(path):
    for module, rest in commands(text_of(path)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        names = re.findall(r"(?<!\S)--(?:no)?([\w-]+)", rest)
        of_config = dict(re.findall(r"(?<!\S)--config\.([\w.]+)[= ]?(\S*)", rest))
        unknown = set(names) - defined(module) - shared()[""] - OF_ABSL
        assert not unknown, f"{module}{rest} has no flag {unknown}"
        file = re.search(r"--config[ =](configs/\S+)", rest)
        if file:
            name, _, variant = file[1].partition(":")
            config = runpy.run_path(str(ROOT / name))["get_config"](*filter(None, [variant]))
            build.make_room(config, of_config)
            build.check_config(config)


def test_scripts_are_there():
    for path in PAGES:
        text = path.read_text()
        for script in re.findall(
            r"(?:bash |^ +)((?:launch|docs|benchmarks|\.ci)/[\w.]+)", text, re.M
        ):
            assert (ROOT / script).is_file(), f"{path.name}: {script}"
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if line.lstrip().startswith("launch/tpu_vm.sh"):
                usage = (ROOT / "launch/tpu_vm.sh").read_text()
                words = shlex.split(line.split(" -- ")[0])[1:]
                assert all(f"  {word} " in usage for word in words if word.startswith("--")), line


def test_configs_written_in_a_page_are_whole(monkeypatch):
    monkeypatch.chdir(ROOT)
    pages = [path for path in PAGES if "def get_config" in path.read_text()]
    assert pages
    for path in pages:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
            names = {}
            exec(block, names)
            build.check_config(ConfigDict(names["get_config"]()))


def test_every_command_has_a_row():
    page = (ROOT / "docs/commands.md").read_text()
    for folder in ("launch", "benchmarks"):
        for path in ROOT.glob(f"{folder}/*.py"):
            if "__main__" in path.read_text():
                assert f"`{folder}.{path.stem}" in page, path


def test_every_method_has_a_row():
    axes = (ROOT / "docs/methods.md").read_text()
    missing = [kind for kinds in METHODS.values() for kind in kinds if f"`{kind}`" not in axes]
    family = (ROOT / "docs/family.md").read_text()
    missing += [p.name for p in ROOT.glob("configs/family/*.py") if f"/{p.name}`" not in family]
    assert not missing


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150 and "No TPU has run it yet." in readme
    for path in ROOT.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / link).is_file(), f"{path.name}: {link}"


def test_an_installed_package_has_the_configs_and_one_version(monkeypatch):
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path("setup.py")
    folders = {path.parent.relative_to(ROOT) for path in HEADERS}
    assert {".".join(("var_jax", *folder.parts)) for folder in folders} <= set(given["packages"])
    assert given["version"] == var_jax.__version__
