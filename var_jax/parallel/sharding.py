"""Mesh, rules from logical axis names to mesh axes, and checks before anything is compiled.

Parameters and activations carry logical axis names; a preset says which mesh axis each name
is laid on. Flax replicates a parameter whose logical name has no rule and drops constraints
outside a mesh context, both without a word; here either one is an error or cannot happen.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

#: data: whole copies of the parameters; fsdp: parameters and batch cut together (ZeRO-3);
#: tensor: heads, hidden units and vocabulary of one example cut.
MESH_AXES = ("data", "fsdp", "tensor")

#: Logical names of parameter dimensions.
PARAMETER_NAMES = (
    "layers",
    "embed",
    "heads",
    "head_dim",
    "mlp",
    "vocab",
    "code",
    "cond",
    "adaln",
    "class",
    "level",
    "position",
    "conv_in",
    "conv_out",
)

#: Logical names of activation dimensions.
ACTIVATION_NAMES = (
    "batch",
    "length",
    "act_embed",
    "act_heads",
    "act_mlp",
    "act_vocab",
    "height",
    "width",
    "channels",
)

LOGICAL_NAMES = PARAMETER_NAMES + ACTIVATION_NAMES

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

BATCH_AXES = ("data", "fsdp")


def _preset(**assigned: MeshAxes) -> Rules:
    return tuple((name, assigned.get(name)) for name in LOGICAL_NAMES)


#: Every preset has a rule for every logical name. The modulation's kernel is (cond, adaln = 6
#: or 9, embed); frozen networks inside a step, such as a tokenizer, are best laid out 'replicated'.
PRESETS: dict[str, Rules] = {
    "replicated": _preset(batch=BATCH_AXES),
    "fsdp": _preset(batch=BATCH_AXES, embed="fsdp", conv_out="fsdp"),
    "fsdp_tensor": _preset(
        batch=BATCH_AXES,
        embed="fsdp",
        conv_out="fsdp",
        heads="tensor",
        mlp="tensor",
        vocab="tensor",
        cond="tensor",
        act_heads="tensor",
        act_mlp="tensor",
        act_vocab="tensor",
    ),
}


def resolve_rules(preset: str | Rules) -> Rules:
    """The rules of a preset by name, or the given rules after a check of their names.

    Raises:
      ValueError: unknown preset, unknown logical name or unknown mesh axis.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(
                f"Unknown sharding preset {preset!r}; choose one of {', '.join(PRESETS)}."
            )
        return PRESETS[preset]
    for name, axes in preset:
        if name not in LOGICAL_NAMES:
            raise ValueError(
                f"Sharding rule for unknown logical axis {name!r}; the known names are "
                f"{', '.join(LOGICAL_NAMES)}."
            )
        for axis in _as_tuple(axes):
            if axis not in MESH_AXES:
                raise ValueError(
                    f"Sharding rule {name!r} -> {axes!r} names the unknown mesh axis {axis!r}; "
                    f"the mesh axes are {', '.join(MESH_AXES)}."
                )
    return tuple(preset)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    max_fsdp: int = 0,
    dcn_data: int | None = None,
) -> Mesh:
    """A mesh with the axes ('data', 'fsdp', 'tensor').

    Args:
      data: number of copies of the parameters, over all slices. At most one of data, fsdp
        and tensor is -1: whatever is left of the devices.
      fsdp: over how many devices each copy of the parameters is cut.
      tensor: over how many devices one example's heads and hidden units are cut.
      max_fsdp: above 0, data and fsdp may both be -1: fsdp is the largest divisor of this number
        that also divides the devices of a slice, and data is what is left. With 16, 8 devices
        are 1 x 8 and 64 are 4 x 16.
      devices: the devices, all of jax.devices() by default; those of a TPU topology for
        compilation ahead of time.
      dcn_data: over how many TPU slices the data axis runs (their network is slower than
        the one inside a slice, so only gradients of whole copies cross it). None: the
        number of slices that the devices belong to.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(d, "slice_index", 0) or 0 for d in devices})
    if data == fsdp == -1 and max_fsdp > 0 and tensor > 0:
        # Of a slice, not of all: parameters are never cut across slices.
        fsdp = math.gcd(max_fsdp, len(devices) // slices // tensor)
    shape = _fill_shape({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    dcn_data = slices if dcn_data is None else dcn_data
    if dcn_data != slices:
        raise ValueError(
            f"dcn_data={dcn_data}, but the {len(devices)} devices belong to {slices} TPU "
            f"slice(s); set dcn_data={slices} or leave it out."
        )
    if shape[0] % dcn_data:
        raise ValueError(
            f"The data axis has size {shape[0]}, which does not split over {dcn_data} TPU slices; "
            f"make data a multiple of {dcn_data} (parameters are never cut across slices)."
        )
    if dcn_data > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // dcn_data, *shape[1:]),
            (dcn_data, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices, dtype=object).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _fill_shape(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    for axis, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"Mesh axis {axis} has size {size}; give a positive number or -1.")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(
            f"Mesh axes {' and '.join(free)} are both -1; at most one takes what is left."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if num_devices % fixed or (not free and fixed != num_devices):
        asked = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(
            f"The mesh {asked} does not fit {num_devices} devices; the sizes must multiply to "
            f"{num_devices} (at most one may be -1)."
        )
    return tuple(num_devices // fixed if size == -1 else size for size in sizes.values())


def abstract_shardings(boxed: PyTree, mesh: Mesh, preset: str | Rules) -> PyTree:
    """The sharding of each leaf of a tree with logical axis names, checked strictly.

    Args:
      boxed: tree of arrays or ShapeDtypeStructs, parameters still in the boxes that
        nn.with_logical_partitioning made (an optimizer's state made from them has them
        too). A leaf without a box, such as a step counter, is replicated.
      mesh: with the axes data, fsdp, tensor.
      preset: name in PRESETS, or rules.

    Returns:
      The tree without boxes, with a NamedSharding for each leaf.

    Raises:
      ValueError: a logical name without a rule, two dimensions of one parameter on the same
        mesh axis, or a dimension that its mesh axes do not divide. The message names the
        parameter, the dimension, and the axis sizes that would work.
    """
    rules = dict(resolve_rules(preset))
    problems: dict[tuple, str] = {}
    flat, treedef = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_box)
    specs = []
    for path, leaf in flat:
        if _is_box(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            specs.append(_leaf_spec(name, leaf, mesh, rules, problems))
        else:
            specs.append(PartitionSpec())
    if problems:
        raise ValueError("\n".join(list(problems.values())[:8]))
    return jax.tree_util.tree_unflatten(treedef, [NamedSharding(mesh, spec) for spec in specs])


def _leaf_spec(
    path: str, box: nn.Partitioned, mesh: Mesh, rules: dict[str, MeshAxes], problems: dict
) -> PartitionSpec:
    names, shape = tuple(box.names), tuple(box.value.shape)
    if len(names) != len(shape):
        problems.setdefault(
            (path,),
            f"Parameter {path} has shape {shape} but {len(names)} logical axis names {names}; give "
            "one name (or None) per dimension.",
        )
        return PartitionSpec()
    axes: list[MeshAxes] = []
    used: dict[str, tuple[int, str]] = {}
    for dim, (name, size) in enumerate(zip(names, shape, strict=True)):
        if name is not None and name not in rules:
            problems.setdefault(
                (name,),
                f"Parameter {path}: dimension {dim} has the logical axis name {name!r}, which has "
                f"no sharding rule; the known names are {', '.join(rules)}.",
            )
            continue
        assigned = _as_tuple(rules[name] if name is not None else None)
        for axis in assigned:
            if axis in used:
                problems.setdefault(
                    (names, axis),
                    f"Parameter {path}: dimensions {used[axis][0]} ({used[axis][1]!r}) and {dim} "
                    f"({name!r}) are both laid on mesh axis {axis!r}; an axis can cut one "
                    "dimension only, so change the rule of one of the two names.",
                )
            used[axis] = (dim, name)
        parts = math.prod(mesh.shape[axis] for axis in assigned)
        if size % parts:
            total = math.prod(mesh.shape.values())
            works = [n for n in range(1, min(size, total) + 1) if size % n == 0 and total % n == 0]
            axis_text = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in assigned)
            problems.setdefault(
                (name, size),
                f"Parameter {path}: dimension {dim} ({name!r}) has size {size}, which {axis_text} "
                f"does not divide; on {total} devices {' x '.join(assigned)} can be "
                f"{', '.join(map(str, works))}.",
            )
        kept = tuple(axis for axis in assigned if mesh.shape[axis] > 1)
        axes.append(kept[0] if len(kept) == 1 else (kept or None))
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def unbox(tree: PyTree) -> PyTree:
    """The tree without the boxes that hold logical axis names.

    Unlike nn.unbox it applies no sharding constraint, so it also takes abstract trees while
    a mesh is active.
    """
    return jax.tree.map(
        lambda leaf: leaf.unbox(apply_constraint=False) if _is_box(leaf) else leaf,
        tree,
        is_leaf=_is_box,
    )


def abstract_state(boxed: PyTree, mesh: Mesh, preset: str | Rules) -> PyTree:
    """ShapeDtypeStructs with shardings, without boxes: what restore and compilation ask for.

    Args and Raises as for abstract_shardings.
    """
    shardings = abstract_shardings(boxed, mesh, preset)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        unbox(boxed),
        shardings,
    )


def init_sharded(
    init_fn: Callable[..., PyTree], *args: PyTree, mesh: Mesh, preset: str | Rules
) -> tuple[PyTree, PyTree]:
    """Runs an initialiser so that each device only ever holds its part of the result.

    Args:
      init_fn: pure function of `args` that returns a tree with boxes, such as a train state.
      args: usually one PRNG key.
      mesh: concrete devices.
      preset: name in PRESETS, or rules.

    Returns:
      (state, shardings), both without boxes.
    """
    shardings = abstract_shardings(jax.eval_shape(init_fn, *args), mesh, preset)
    with activate(mesh, preset):
        state = jax.jit(lambda *a: unbox(init_fn(*a)), out_shardings=shardings)(*args)
    return state, shardings


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over the data and fsdp axes: how batches and per-example keys lie."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> int:
    """The number of examples a device holds of one microbatch.

    Raises:
      ValueError: the batch does not split evenly.
    """
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * microbatches
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"Batch size {batch_size} does not split over data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} devices and {microbatches} microbatch(es); use a multiple "
            f"of {parts}, such as {max(1, round(batch_size / parts)) * parts}."
        )
    return batch_size // parts


def padded_batch(size: int, mesh: Mesh) -> int:
    """The smallest batch of at least `size` examples that the mesh divides."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return -(-size // parts) * parts


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options for `jax.jit` of programs whose parameters are cut over the mesh; None off TPUs.

    By default XLA for TPU computes products with an operand of 256 MiB or more in parts, one for
    each part of a cut matrix, and adds them up in memory in the type of the result. Gathering the
    matrix first halves the memory traffic of a step (d16, 96 images per chip of v4:2x2x2: 403 GB
    instead of 892) and does not round sums to bfloat16.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@contextlib.contextmanager
def activate(mesh: Mesh, preset: str | Rules) -> Iterator[None]:
    """Makes nn.with_logical_constraint take effect in what is traced inside.

    Neither `with mesh:` nor rules alone do: flax then drops every constraint silently and
    the compiler may choose layouts that need many times the memory. Works for the devices
    of this machine and for those of a TPU topology that is only compiled for.
    """
    rules = resolve_rules(preset)
    context = (
        jax.set_mesh(mesh)
        if is_concrete(mesh)
        else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    )
    with context, nn.logical_axis_rules(rules):
        yield


def is_concrete(mesh: Mesh) -> bool:
    """Whether the mesh's devices can run programs (False for a TPU topology's)."""
    device = mesh.devices.flat[0]
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:
        return False


def _is_box(leaf: object) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)
