"""What a program compiled for a TPU topology needs of each device, and the least time it takes."""

from __future__ import annotations

import dataclasses
import math
import re
import time

import jax
from jaxtyping import PyTree

from var_jax.parallel import sharding
from var_jax.plan import accelerators
from var_jax.plan.accelerators import Chip
from var_jax.plan.flops import program_flops
from var_jax.plan.hlo.traffic import Traffic
from var_jax.plan.programs import Program

#: Part of a device's memory that no program gets: a quarter of a GiB of v5e's 16.
_RESERVED = 1 / 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run of a program needs of each device, and the least time it can take.

    A device is a chip but on TPU7x, see `chips.Chip`.

    Attributes:
      chip: the kind of device.
      num_devices: of all slices.
      mesh: axis sizes.
      images: of one run, over all chips.
      fits: whether it compiled within the device's memory, beside what else lies there.
      argument_bytes: of what stays between runs, such as the state.
      temporary_bytes: of what the program needs beside it.
      peak_bytes: most that is in use at once, by the compiler, arguments included; gaps between
        buffers come on top. If it did not compile, what it would need.
      beside_bytes: of what lies on the device while it runs and is not passed to it.
      model_flops: useful operations per device, by the model's formula.
      program_flops: operations per device that the program does, rematerialisation included.
      memory_traffic: bytes to and from main memory per device.
      link_traffic: bytes that a device sends to others of its slice, by kind of collective.
      network_traffic: bytes that a device sends to other slices.
      compile_seconds: on this machine.
    """

    chip: Chip
    num_devices: int
    mesh: dict[str, int]
    images: int
    fits: bool
    argument_bytes: float = 0.0
    temporary_bytes: float = 0.0
    peak_bytes: float = 0.0
    beside_bytes: float = 0.0
    model_flops: float = 0.0
    program_flops: float = 0.0
    memory_traffic: float = 0.0
    link_traffic: dict[str, float] = dataclasses.field(default_factory=dict)
    network_traffic: float = 0.0
    compile_seconds: float = 0.0

    @property
    def num_chips(self) -> float:
        """Chips of all slices."""
        return self.num_devices / self.chip.per_chip

    @property
    def total_bytes(self) -> float:
        """In use at the peak: by the program and by what lies beside it."""
        return self.peak_bytes + self.beside_bytes

    @property
    def compute_seconds(self) -> float:
        """Floor by arithmetic at the device's peak."""
        return self.program_flops / self.chip.flops

    @property
    def memory_seconds(self) -> float:
        """Floor by main memory."""
        return self.memory_traffic / self.chip.hbm_bandwidth

    @property
    def link_seconds(self) -> float:
        """Floor by the links between devices, all of them in use."""
        return sum(self.link_traffic.values()) / self.chip.link_bandwidth

    @property
    def network_seconds(self) -> float:
        """Floor by the network between slices."""
        return self.network_traffic / self.chip.network_bandwidth

    @property
    def floors(self) -> dict[str, float]:
        """The floors in seconds by what sets them."""
        return {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "links": self.link_seconds,
            "network": self.network_seconds,
        }

    @property
    def floor_seconds(self) -> float:
        """No run is faster: everything overlaps perfectly with the slowest."""
        return max(self.floors.values())

    @property
    def serial_seconds(self) -> float:
        """The time if nothing overlapped and each part still ran at its full speed."""
        return sum(self.floors.values())

    @property
    def bound_by(self) -> str:
        """Which of the floors is the highest."""
        return max(self.floors, key=self.floors.get)

    def utilisation(self, seconds: float) -> float:
        """Useful operations over the device's peak, if a run takes that long."""
        return self.model_flops / self.chip.flops / seconds

    def chip_hours(self, num_steps: int, seconds: float) -> float:
        """What that many runs of that length cost."""
        return num_steps * seconds * self.num_chips / 3600


def make_plan(program: Program) -> Plan:
    """Compiles a program for the devices of its mesh and reads it.

    Args:
      program: its mesh is of topology devices, see `var_jax.plan.topology`.

    Returns:
      The plan; a program that needs too much memory has fits=False and no traffic.

    Raises:
      ValueError: there is no table entry for this kind of device.
    """
    mesh = program.mesh
    device = mesh.devices.flat[0]
    chip = accelerators.of_kind(device.device_kind)
    if chip is None:
        raise ValueError(f"No table entry for devices of the kind {device.device_kind!r}.")
    shape = dict(mesh.shape)
    count = math.prod(shape.values())
    with sharding.activate(mesh, program.preset):
        traced = program.function.trace(*program.args)
        flops = program_flops(traced.jaxpr)
        lowered = traced.lower()
    base = Plan(
        chip,
        count,
        shape,
        program.images,
        fits=True,
        model_flops=program.model_flops / count,
        program_flops=flops / count,
    )
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed_bytes(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        return dataclasses.replace(base, fits=False, peak_bytes=needed, compile_seconds=seconds)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    traffic = Traffic(compiled.as_text())
    links: dict[str, float] = {}
    for collective in traffic.collectives():
        links[collective.kind] = links.get(collective.kind, 0.0) + collective.sent_bytes
    arguments = float(memory.argument_size_in_bytes)
    # Arguments that the program does not read are not passed to it, but lie there all the same.
    passed = {id(x) for x in jax.tree.leaves(program.args)}
    others = [x for x in jax.tree.leaves(program.beside) if id(x) not in passed]
    beside = 0.0
    if program.beside:
        beside = device_bytes(others) + max(0.0, device_bytes(program.args) - arguments)
    peak = float(memory.peak_memory_in_bytes)
    return dataclasses.replace(
        base,
        fits=peak + beside <= (1 - _RESERVED) * chip.hbm_bytes,
        argument_bytes=arguments,
        temporary_bytes=float(memory.temp_size_in_bytes),
        peak_bytes=peak,
        beside_bytes=beside,
        memory_traffic=traffic.memory_bytes(),
        link_traffic=links,
        network_traffic=traffic.network_bytes(),
        compile_seconds=seconds,
    )


def device_bytes(tree: PyTree) -> float:
    """Bytes that each device holds of a tree of arrays or ShapeDtypeStructs with shardings."""
    return float(
        sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(tree)
        )
    )


def _needed_bytes(message: str) -> float | None:
    """Bytes that the compiler says a program needs of main memory, if that is the trouble."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message) or re.search(
        r"\(([\d.]+)([KMGT])\) exceeds available HBM", message
    )
    if found is None:
        return math.nan if "hbm" in message.lower() else None
    return float(found.group(1)) * 1024.0 ** ("KMGT".index(found.group(2)) + 1)
