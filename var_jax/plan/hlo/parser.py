"""The text of a compiled program as instructions, and the sizes in it."""

from __future__ import annotations

import dataclasses
import math
import re

_DTYPE_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      type: text of its shape.
      opcode: such as 'fusion'.
      operands: names.
      rest: text after the operands: attributes and metadata.
      root: whether it is the computation's result.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """Name of the computation that an attribute such as 'body' holds."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None

    def constant(self) -> int | None:
        """The value of an integer constant; None of anything else."""
        value = re.match(r"(-?\d+)\)", self.rest) if self.opcode == "constant" else None
        return int(value.group(1)) if value else None


Computation = dict[str, Instruction]


class Program:
    """A compiled program, from `compiled.as_text()`.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
      num_partitions: chips that it runs on.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        self.num_partitions = int((re.search(r"num_partitions=(\d+)", text) or [0, 1])[1])
        current: Computation | None = None
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if head and not line.startswith(" "):
                current = self.computations.setdefault(head.group(2), {})
                if head.group(1):
                    self.entry = head.group(2)
            elif current is not None and (instruction := _parse(line)):
                current[instruction.name] = instruction


def _parse(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    text = line[match.end() :]
    end = closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.find("(")
    end = closing(text, opening)
    inner = text[opening + 1 : end]
    opcode = text[:opening]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    # A constant's value and a parameter's number stand where operands stand.
    rest = inner + text[end:] if opcode in ("constant", "parameter") else text[end:]
    return Instruction(match.group(2), kind, opcode, operands, rest, bool(match.group(1)))


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def bytes_of(match: re.Match) -> int:
    """Bytes of an array that ARRAY found."""
    dtype, shape = match.group(1), match.group(2)
    bits = _DTYPE_BITS.get(dtype)
    if bits is None:
        number = re.search(r"\d+", dtype)
        bits = int(number.group(0)) if number else 0
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def array_bytes(text: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(map(bytes_of, ARRAY.finditer(text)))


def main_memory_bytes(text: str) -> int:
    """Bytes of those arrays in the text of a type that lie in main memory."""
    arrays = ARRAY.finditer(text)
    return sum(bytes_of(m) for m in arrays if not re.search(r"S\([1-9]\)", m.group(3) or ""))


def group_size(attributes: str, num_partitions: int) -> int:
    """Chips in each group of a collective; 2 for a permutation that moves anything."""
    if "source_target_pairs=" in attributes:
        pairs = re.findall(r"\{(\d+),(\d+)\}", attributes)
        return 2 if any(a != b for a, b in pairs) else 1
    lists = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if lists:
        return len(lists.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if iota:
        return int(iota.group(2))
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}", attributes
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh.group(1))}
        total = 1
        for name, part in re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh.group(2)):
            total *= int(part) if part else sizes[name]
        return total
    return num_partitions
