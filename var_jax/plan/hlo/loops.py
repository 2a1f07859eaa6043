"""How often each part of a compiled program runs."""

from __future__ import annotations

import math
import re

from var_jax.plan.hlo.parser import Instruction, Program


def run_counts(program: Program) -> dict[str, int]:
    """How often each computation that is not part of a fusion runs."""
    times: dict[str, int] = {}

    def visit(name: str, factor: int) -> None:
        times[name] = times.get(name, 0) + factor
        for instruction in program.computations[name].values():
            if instruction.opcode == "while":
                visit(instruction.called("body"), factor * _trips(program, name, instruction))
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

    visit(program.entry, 1)
    return times


def _trips(program: Program, owner: str, loop: Instruction) -> int:
    """How often a loop of the computation `owner` runs."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known.group(1))
    condition = program.computations[loop.called("condition")]
    compare = next((i for i in condition.values() if i.opcode == "compare"), None)
    if compare is None:
        # The comparison is in a fusion: its constant is the only bound in sight.
        bounds = [int(v) for i in condition.values() if (v := i.constant()) is not None]
        return max(bounds, default=1)
    index = None
    bound = None
    for operand in compare.operands:
        instruction = condition[operand]
        value = instruction.constant()
        if value is not None:
            bound = value
        elif instruction.opcode == "get-tuple-element":
            position = int(re.search(r"index=(\d+)", instruction.rest).group(1))
            start = _initial(program, owner, loop, position)
            if index is None and _step(program, loop, position) is not None:
                index = position
            elif start is not None:
                bound = start
    if bound is None or index is None:
        return 1
    start = _initial(program, owner, loop, index) or 0
    step = _step(program, loop, index) or 1
    return max(1, math.ceil(abs(bound - start) / abs(step)))


def _initial(program: Program, owner: str, loop: Instruction, position: int) -> int | None:
    """The constant that a loop's variable starts with."""
    inside = program.computations[owner]
    start = inside.get(loop.operands[0])
    if start is None or start.opcode != "tuple":
        return None
    value = inside.get(start.operands[position])
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = inside.get(value.operands[0])
    return None if value is None else value.constant()


def _step(program: Program, loop: Instruction, position: int) -> int | None:
    """What the body adds to a loop's variable; None if it does not change."""
    body = program.computations[loop.called("body")]
    root = next(i for i in body.values() if i.root)
    if root.opcode != "tuple":
        return 1
    update = body[root.operands[position]]
    if update.opcode == "get-tuple-element":
        return None
    for operand in update.operands:
        value = body[operand].constant() if operand in body else None
        if update.opcode == "add" and value:
            return value
    return 1
