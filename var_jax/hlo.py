"""Reading a compiled program: what it moves between chips and to and from memory.

XLA's own cost analysis counts the body of a loop once and knows nothing of collectives, so
the text of the optimised program is read instead: loops with their trip counts, collectives
with their groups, and arrays that lie in main memory (others carry S(1): on-chip memory).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_DTYPE_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_SLICES = ("dynamic-slice", "slice", "gather")
#: Operations that move nothing: names, views, and the ends of asynchronous pairs.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("while", "conditional", "call", "after-all", "optimization-barrier", "add-dependency"),
        *("copy-done", "slice-done", "async-done", "async-update", "send-done", "recv-done"),
        *("all-gather-done", "all-reduce-done", "collective-permute-done"),
        *("partition-id", "replica-id"),
    )
)
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)


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


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchange of one array between chips, as often as the program runs it.

    Attributes:
      kind: 'all-gather', 'reduce-scatter', ...
      operand_bytes: what each chip puts in.
      group_size: chips that take part together.
      times: a step.
      source: where it comes from in the model.
    """

    kind: str
    operand_bytes: int
    group_size: int
    times: int
    source: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that each chip sends in a step, by the best (ring) algorithm."""
        part = (self.group_size - 1) / self.group_size
        once = {
            "all-gather": self.operand_bytes * (self.group_size - 1),
            "all-reduce": 2 * self.operand_bytes * part,
            "collective-permute": self.operand_bytes,
        }.get(self.kind, self.operand_bytes * part)
        return once * self.times


class Program:
    """A compiled program, from `compiled.as_text()`."""

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
        self._times = self._count_runs()

    def collectives(self) -> list[Collective]:
        """Every collective once, with how often it runs."""
        whole: list[Collective] = []
        pieces: dict[tuple[str, str], Collective] = {}
        for name, times in self._times.items():
            for owner, instruction in self._nested(name):
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                inside = self.computations[owner]
                if kind == "all-reduce" and self._is_scattered(owner, instruction):
                    kind = "reduce-scatter"
                source = re.search(r'op_name="([^"]*)"', instruction.rest)
                collective = Collective(
                    kind,
                    sum(array_bytes(inside[o].type) for o in instruction.operands if o in inside),
                    group_size(instruction.rest, self.num_partitions),
                    times,
                    source.group(1) if source else "",
                )
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                if owner == name or channel is None:
                    whole.append(collective)
                    continue
                # The compiler cuts a collective into pieces inside the fusions, even of inner
                # loops, that it overlaps with. They share a channel, and together they are one
                # run of it for each run of the outermost of these places.
                key = (kind, channel.group(1))
                if key not in pieces or times < pieces[key].times:
                    pieces[key] = collective
        return [c for c in [*whole, *pieces.values()] if c.group_size > 1]

    def network_bytes(self) -> float:
        """Bytes that each chip sends to other slices, through its host, in one run."""
        total = 0.0
        for name, times in self._times.items():
            for i in self.computations[name].values():
                if i.opcode == "send" and "megascale" in i.rest:
                    total += times * _bytes_of(_ARRAY.search(i.type))
        return total

    def memory_bytes(self) -> float:
        """Bytes read from and written to main memory in one run, loops included."""
        total = 0.0
        for name, times in self._times.items():
            total += times * sum(
                self._moved(self.computations[name], i) for i in self.computations[name].values()
            )
        return total

    def loops(self) -> dict[str, int]:
        """Trip count of each loop by the name of its body."""
        return {
            body: self._trips(name, i)
            for name, computation in self.computations.items()
            for i in computation.values()
            if i.opcode == "while" and (body := i.called("body"))
        }

    def _count_runs(self) -> dict[str, int]:
        """How often each computation that is not part of a fusion runs."""
        times: dict[str, int] = {}

        def visit(name: str, factor: int) -> None:
            times[name] = times.get(name, 0) + factor
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    visit(instruction.called("body"), factor * self._trips(name, instruction))
                elif instruction.opcode == "call":
                    visit(instruction.called("to_apply"), factor)
                elif instruction.opcode == "conditional":
                    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
                    names = (
                        re.findall(r"%?([\w.\-]+)", branches.group(1))
                        if branches
                        else [instruction.called("true_computation")]
                    )
                    visit(names[0], factor)

        visit(self.entry, 1)
        return times

    def _trips(self, owner: str, loop: Instruction) -> int:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.called("condition")]
        compare = next((i for i in condition.values() if i.opcode == "compare"), None)
        if compare is None:
            # The comparison is in a fusion: its constant is the only bound in sight.
            bounds = [int(v) for i in condition.values() if (v := _constant(i)) is not None]
            return max(bounds, default=1)
        index = None
        bound = None
        for operand in compare.operands:
            instruction = condition[operand]
            value = _constant(instruction)
            if value is not None:
                bound = value
            elif instruction.opcode == "get-tuple-element":
                position = int(re.search(r"index=(\d+)", instruction.rest).group(1))
                start = self._initial(owner, loop, position)
                if index is None and self._step(loop, position) is not None:
                    index = position
                elif start is not None:
                    bound = start
        if bound is None or index is None:
            return 1
        start = self._initial(owner, loop, index) or 0
        step = self._step(loop, index) or 1
        return max(1, math.ceil(abs(bound - start) / abs(step)))

    def _initial(self, owner: str, loop: Instruction, position: int) -> int | None:
        """The constant that a loop's variable starts with."""
        inside = self.computations[owner]
        start = inside.get(loop.operands[0])
        if start is None or start.opcode != "tuple":
            return None
        value = inside.get(start.operands[position])
        while value is not None and value.opcode in ("copy", "bitcast"):
            value = inside.get(value.operands[0])
        return None if value is None else _constant(value)

    def _step(self, loop: Instruction, position: int) -> int | None:
        """What the body adds to a loop's variable; None if it does not change."""
        body = self.computations[loop.called("body")]
        root = next(i for i in body.values() if i.root)
        if root.opcode != "tuple":
            return 1
        update = body[root.operands[position]]
        if update.opcode == "get-tuple-element":
            return None
        for operand in update.operands:
            value = _constant(body[operand]) if operand in body else None
            if update.opcode == "add" and value:
                return value
        return 1

    def _nested(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """A computation's instructions and those of the fusions in it."""
        for instruction in self.computations[name].values():
            yield name, instruction
            if instruction.opcode in ("fusion", "async-start"):
                inner = instruction.called("calls")
                if inner in self.computations:
                    yield from self._nested(inner)

    def _is_scattered(self, owner: str, reduce: Instruction) -> bool:
        """Whether all that is kept of an all-reduce is one slice: a reduce-scatter."""
        users = [i for i in self.computations[owner].values() if reduce.name in i.operands]
        sliced = bool(users) and all(i.opcode == "dynamic-slice" for i in users)
        return sliced or "all-reduce-scatter" in owner

    def _moved(self, inside: Computation, i: Instruction) -> float:
        if i.opcode in _FREE:
            return 0.0
        types = [inside[o].type for o in i.operands if o in inside]
        if i.opcode in _SLICES:
            return 2 * main_memory_bytes(i.type)
        if i.opcode == "dynamic-update-slice":
            return 2 * main_memory_bytes(types[1])
        if i.opcode in ("slice-start", "async-start"):
            # The type is ((operands), result, ...): only the slice is read.
            result = i.type[_closing(i.type, 1) + 1 :] if i.type.startswith("((") else i.type
            array = _ARRAY.search(result)
            return float(_bytes_of(array) + main_memory_bytes(array.group(0)))
        if i.opcode.endswith("-start"):
            # (operand, result, ...) or (result, operand, ...): what is read and what is written.
            arrays = list(_ARRAY.finditer(i.type))[:2]
            return float(sum(main_memory_bytes(a.group(0)) for a in arrays))
        if i.opcode == "fusion" and i.called("calls") in self.computations:
            return self._fusion_moved(self.computations[i.called("calls")], i, types)
        return float(main_memory_bytes(i.type) + sum(map(main_memory_bytes, types)))

    def _fusion_moved(self, body: Computation, i: Instruction, types: list[str]) -> float:
        """Bytes of a fusion: of a stacked array that it slices or updates, only the slice."""
        root = next(r for r in body.values() if r.root)
        results = root.operands if root.opcode == "tuple" else (root.name,)
        total = 0.0
        for result, array in zip(results, _ARRAY.finditer(i.type), strict=False):
            producer = _behind_views(body, result)
            if producer.opcode == "dynamic-update-slice":
                array = _ARRAY.search(body[producer.operands[1]].type)
            if producer.opcode != "parameter" and not _is_collective(producer):
                total += main_memory_bytes(array.group(0))
        for number, kind in enumerate(types):
            whole = main_memory_bytes(kind)
            if whole:
                total += min(self._read(body, number, whole), whole)
        return total

    def _read(self, body: Computation, number: int, whole: int) -> float:
        """What a fusion reads of its parameter of that number, `whole` bytes if all of it."""
        p = next(
            i for i in body.values() if i.opcode == "parameter" and re.match(rf"{number}\)", i.rest)
        )
        total = 0.0
        for user in _users(body, p.name):
            position = next(n for n, o in enumerate(user.operands) if _behind_views(body, o) is p)
            inner = user.called("calls") if user.opcode == "fusion" else None
            if user.opcode == "tuple" or _is_collective(user):
                continue
            if inner in self.computations:
                total += self._read(self.computations[inner], position, whole)
            elif user.opcode in _SLICES and position == 0:
                total += array_bytes(user.type)
            elif user.opcode != "dynamic-update-slice" or position:
                total += whole
        return total


def _is_collective(i: Instruction) -> bool:
    return i.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES


def _behind_views(body: Computation, name: str) -> Instruction:
    """The instruction itself, or what it is only another shape of."""
    i = body[name]
    while i.opcode == "bitcast":
        i = body[i.operands[0]]
    return i


def _users(body: Computation, name: str) -> list[Instruction]:
    """What uses a value, through views of it."""
    found = []
    for i in body.values():
        if name in i.operands:
            found += _users(body, i.name) if i.opcode == "bitcast" and not i.root else [i]
    return found


def _parse(line: str) -> Instruction | None:
    match = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    text = line[match.end() :]
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.find("(")
    closing = _closing(text, opening)
    inner = text[opening + 1 : closing]
    opcode = text[:opening]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    # A constant's value and a parameter's number stand where operands stand.
    rest = inner + text[closing:] if opcode in ("constant", "parameter") else text[closing:]
    return Instruction(match.group(2), kind, opcode, operands, rest, bool(match.group(1)))


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _constant(instruction: Instruction) -> int | None:
    value = re.match(r"(-?\d+)\)", instruction.rest) if instruction.opcode == "constant" else None
    return int(value.group(1)) if value else None


def _bytes_of(match: re.Match) -> int:
    dtype, shape = match.group(1), match.group(2)
    bits = _DTYPE_BITS.get(dtype)
    if bits is None:
        number = re.search(r"\d+", dtype)
        bits = int(number.group(0)) if number else 0
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def array_bytes(text: str) -> int:
    """Bytes of all arrays in the text of a type."""
    return sum(map(_bytes_of, _ARRAY.finditer(text)))


def main_memory_bytes(text: str) -> int:
    """Bytes of those arrays in the text of a type that lie in main memory."""
    arrays = _ARRAY.finditer(text)
    return sum(_bytes_of(m) for m in arrays if not re.search(r"S\([1-9]\)", m.group(3) or ""))


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
