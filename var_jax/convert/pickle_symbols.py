"""What the globals of a PyTorch file's pickle stand for; nothing is imported by a file's names."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

TENSOR_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
        *("bool", "complex64", "complex128"),
    )
}
STORAGE_DTYPES: dict[str, np.dtype] = {
    f"{prefix}Storage": TENSOR_DTYPES[name]
    for prefix, name in (
        *(("Float", "float32"), ("Double", "float64"), ("Half", "float16")),
        *(("BFloat16", "bfloat16"), ("Long", "int64"), ("Int", "int32"), ("Short", "int16")),
        *(("Char", "int8"), ("Byte", "uint8"), ("Bool", "bool")),
        *(("ComplexFloat", "complex64"), ("ComplexDouble", "complex128")),
    )
}
_FUNCTIONS = {
    "collections OrderedDict": "dict",
    "collections defaultdict": "defaultdict",
    "collections Counter": "dict",
    "argparse Namespace": "namespace",
    "types SimpleNamespace": "namespace",
    "torch Size": "size",
    "torch device": "device",
    "torch._utils _rebuild_tensor": "tensor",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_tensor_v3": "tensor_v3",
    "torch._utils _rebuild_parameter": "parameter",
    "torch._utils _rebuild_parameter_with_state": "parameter",
    "torch._tensor _rebuild_from_type_v2": "subclass",
}
#: Nobody keeps these beside tensors; a file that names them wants to run something.
_RUN_CODE = frozenset(
    (
        *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "pty", "commands"),
        *("importlib", "imp", "runpy", "ctypes", "webbrowser", "code", "codeop", "pdb", "bdb"),
        *("timeit", "marshal", "pip", "signal"),
    )
)
_BUILTINS = ("builtins", "__builtin__", "__builtins__")
_RUN_CODE_BUILTINS = frozenset(
    (
        *("eval", "exec", "execfile", "compile", "open", "file", "__import__", "input", "print"),
        *("raw_input", "breakpoint", "exit", "quit", "apply", "globals", "setattr", "delattr"),
    )
)


class RefusedPickle(ValueError):
    """The pickle wants to run something, or holds no container of tensors."""


@dataclasses.dataclass(frozen=True)
class Placeholder:
    """An object that is no tensor and no plain container: by the name of its class, not made."""

    name: str


@dataclasses.dataclass(frozen=True)
class Symbol:
    """What a global of the pickle stands for; `kind` names an interpretation, never a callable."""

    kind: str
    dtype: np.dtype | None = None
    name: str = ""


def symbol(name: str) -> Symbol:
    """The symbol for 'module attribute', or RefusedPickle."""
    if name in _FUNCTIONS:
        return Symbol(_FUNCTIONS[name])
    module, _, attribute = name.partition(" ")
    if module in ("torch", "torch.storage", "torch.cuda"):
        if attribute == "UntypedStorage":
            return Symbol("storage")
        if attribute in STORAGE_DTYPES:
            return Symbol("storage", STORAGE_DTYPES[attribute])
        if module == "torch" and attribute in TENSOR_DTYPES:
            return Symbol("dtype", TENSOR_DTYPES[attribute])
    full = name.replace(" ", ".")
    root = module.partition(".")[0]
    if root in _RUN_CODE or (root in _BUILTINS and attribute in _RUN_CODE_BUILTINS):
        raise RefusedPickle(f"it asks for {full}, which is neither a tensor nor a plain container")
    return Symbol("object", name=full)
