"""Imports only go down the layers of the package."""

import ast
import pathlib

import var_jax

#: Lowest first; a module may import its own layer and those above it in this list.
LAYERS = [
    {"aspect_ratios", "fields", "paths", "pyramid", "pixels", "resample", "settings", "subsets"},
    {"context", "kernels", "parallel", "checkpoint"},
    {"data"},
    {"quantizers"},
    {"codecs"},
    {"tokenizer", "transformer"},
    {"heads"},
    {"network"},
    {"adapters", "decoding", "objectives", "convert", "text_encoders"},
    {"train"},
    {"evaluation"},
    {"build", "plan"},
    {"api"},
    {"studies", "demo"},
]
ROOT = pathlib.Path(var_jax.__file__).parent


def _layer(name: str) -> int:
    for i, names in enumerate(LAYERS):
        if name in names:
            return i
    raise AssertionError(f"var_jax.{name} is in no layer; add it to LAYERS where it belongs.")


def _imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_imports_only_go_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name, line in _imports(path):
            parts = name.split(".")
            if parts[0] == "launch" or (parts[0] == "var_jax" and _layer(parts[1]) > _layer(own)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_command_imports_another():
    shared = {"cli", "compilation_cache", "log"}
    launch = ROOT.parent / "launch"
    commands = {path.stem for path in launch.glob("*.py")} - shared - {"__init__"}
    assert len(commands) > 10
    wrong = []
    for path in sorted(launch.glob("*.py")):
        for name, line in _imports(path):
            parts = name.split(".")
            if parts[0] == "launch" and len(parts) > 1 and parts[1] in commands:
                wrong.append(f"{path.name}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)
