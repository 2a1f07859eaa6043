"""Bytes that a compiled program moves between chips, between slices and to and from memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from var_jax.plan.hlo import loops
from var_jax.plan.hlo.parser import (
    ARRAY,
    Computation,
    Instruction,
    Program,
    array_bytes,
    bytes_of,
    closing,
    group_size,
    main_memory_bytes,
)

_SLICES = ("dynamic-slice", "slice", "gather")
#: Operations that move nothing: names, views, and the ends of asynchronous pairs.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota"),
        *("while", "conditional", "call", "after-all", "optimization-barrier", "add-dependency"),
        *("copy-done", "slice-done", "async-done", "async-update", "send-done", "recv-done"),
        "call-done",
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


class Traffic:
    """What one run of a program moves.

    Args:
      text: `compiled.as_text()`.
    """

    def __init__(self, text: str) -> None:
        program = Program(text)
        self.computations, self.num_partitions = program.computations, program.num_partitions
        self._times = loops.run_counts(program)

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
                    total += times * bytes_of(ARRAY.search(i.type))
        return total

    def memory_bytes(self) -> float:
        """Bytes read from and written to main memory in one run, loops included."""
        total = 0.0
        for name, times in self._times.items():
            total += times * sum(
                self._moved(self.computations[name], i) for i in self.computations[name].values()
            )
        return total

    def _nested(self, name: str) -> Iterator[tuple[str, Instruction]]:
        """A computation's instructions and those of the fusions and asynchronous calls in it."""
        for instruction in self.computations[name].values():
            yield name, instruction
            # TPU7x exchanges on its sparse cores, which an asynchronous call starts.
            attribute = {"fusion": "calls", "async-start": "calls", "call-start": "to_apply"}
            if instruction.opcode in attribute:
                inner = instruction.called(attribute[instruction.opcode])
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
            result = i.type[closing(i.type, 1) + 1 :] if i.type.startswith("((") else i.type
            array = ARRAY.search(result)
            return float(bytes_of(array) + main_memory_bytes(array.group(0)))
        if i.opcode == "call-start":
            # ((operands), result): all of them.
            return float(main_memory_bytes(i.type))
        if i.opcode.endswith("-start"):
            # (operand, result, ...) or (result, operand, ...): what is read and what is written.
            arrays = list(ARRAY.finditer(i.type))[:2]
            return float(sum(main_memory_bytes(a.group(0)) for a in arrays))
        if i.opcode == "fusion" and i.called("calls") in self.computations:
            return self._fusion_moved(self.computations[i.called("calls")], i, types)
        whole = float(main_memory_bytes(i.type) + sum(map(main_memory_bytes, types)))
        # A kernel that reads one block of a stacked array says so.
        said = re.search(r'"bytes_accessed":"(\d+)"', i.rest)
        return min(whole, float(said.group(1))) if said and i.opcode == "custom-call" else whole

    def _fusion_moved(self, body: Computation, i: Instruction, types: list[str]) -> float:
        """Bytes of a fusion: of a stacked array that it slices or updates, only the slice."""
        root = next(r for r in body.values() if r.root)
        results = root.operands if root.opcode == "tuple" else (root.name,)
        total = 0.0
        for result, array in zip(results, ARRAY.finditer(i.type), strict=False):
            producer = _behind_views(body, result)
            if producer.opcode == "dynamic-update-slice":
                array = ARRAY.search(body[producer.operands[1]].type)
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


def _is_view(i: Instruction) -> bool:
    """Whether an instruction of a fusion is its operand by another shape or tiling, made tile by
    tile where it is used."""
    in_place = i.opcode == "fusion" and "output_to_operand_aliasing={{}: (0, {})}" in i.rest
    return i.opcode == "bitcast" or (in_place and len(i.operands) == 1)


def _behind_views(body: Computation, name: str) -> Instruction:
    """The instruction itself, or what it is only a view of."""
    i = body[name]
    while _is_view(i):
        i = body[i.operands[0]]
    return i


def _users(body: Computation, name: str) -> list[Instruction]:
    """What uses a value, through views of it."""
    found = []
    for i in body.values():
        if name in i.operands:
            found += _users(body, i.name) if _is_view(i) and not i.root else [i]
    return found
