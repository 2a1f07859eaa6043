"""Attention of each query over one static interval of keys, or a neighbourhood inside it.

The one attention of this project: block-causal (VAR), own-scale (HMAR), neighbourhoods (MVAR) and
previous scales differ only in their key segments, which come from `context.key_segments`. Of JAX's
own kernels, splash and flash, the faster takes 1.6 to 2.2 times as long by docs/kernels.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from var_jax import kernels
from var_jax.context import KeySegment
from var_jax.kernels.block_attention import cudnn, pallas_tpu, reference, tiling, xla

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "cudnn": cudnn.block_attention,
    "pallas_tpu": pallas_tpu.block_attention,
    "xla": xla.block_attention,
}
#: Mesh axes that carry the batch and the heads.
BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"


def best_implementation(platform: str, dtype: jnp.dtype, near: bool = False) -> str:
    """The implementation that None stands for.

    Args:
      platform: "cpu", "gpu", "cuda", "rocm" or "tpu".
      dtype: of q.
      near: some level has a neighbourhood, which "pallas_tpu" does not serve.
    """
    if platform == "tpu" and not near:
        return "pallas_tpu"
    if platform in ("gpu", "cuda") and dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    return "xla"


def _spec(batch: int, num_heads: int) -> PartitionSpec | None:
    """How q, k and v lie on the mesh in force, or None if there is nothing to map over."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    free = [a for a in mesh.axis_names if types[a] != AxisType.Manual and mesh.shape[a] > 1]
    if not free:
        return None
    rows: tuple[str, ...] = tuple(a for a in BATCH_AXES if a in free)
    if batch % functools.reduce(lambda n, a: n * mesh.shape[a], rows, 1):
        rows = ()
    tensor = HEAD_AXIS if HEAD_AXIS in free else None
    if tensor and num_heads % mesh.shape[tensor]:
        raise ValueError(
            f"{num_heads} attention heads cannot be split over the {mesh.shape[tensor]} devices "
            f"of mesh axis {tensor!r}; choose a tensor size that divides {num_heads}."
        )
    return PartitionSpec(rows or None, None, tensor, None)


def block_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B Lk N H"],
    v: Float[Array, "B Lk N H"],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    log_scale: Float[Array, " N"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "B Lq N H"]:
    """softmax(logits) v, where a query sees only the keys of its segment.

    Under a mesh (`jax.set_mesh` or `use_abstract_mesh`) with the axes data, fsdp and tensor,
    the kernels that the partitioner cannot split run under shard_map, the batch over data and
    fsdp (replicated if it does not divide by them), the heads over tensor. Inside of a
    shard_map the arguments are the device's share already.

    Args:
      q, k, v: queries, keys and values.
      segments: static; consecutive queries and the keys [lo, hi) they see, all of them or those of
        near columns. Rows sum to Lq.
      scale: logits = scale * q . k; ignored if log_scale is given.
      log_scale: if given, q and k are L2-normalised over H in float32 (norms below
        1e-12 count as 1e-12) and logits = exp(min(log_scale, ln 100)) * q . k.
      implementation: "pallas_tpu" (bfloat16 or float32), "cudnn" (NVIDIA GPU; bfloat16 or
        float16), "xla" (anywhere), or None for the best on the backend. A named one never
        falls back to another.

    Returns:
      in v's dtype; logits and softmax are float32 inside.

    Raises:
      ValueError: unknown implementation; shapes or segments that do not fit together; a
        number of heads that the mesh's tensor axis does not divide; a neighbourhood that the named
        implementation does not serve.
      TypeError: a dtype the implementation does not take.
    """
    if (
        q.ndim != 4
        or k.shape != v.shape
        or q.shape[::2] != k.shape[::2]
        or q.shape[3] != k.shape[3]
    ):
        raise ValueError(
            "Block attention takes q [B, Lq, N, H] and k, v [B, Lk, N, H], got "
            f"{q.shape}, {k.shape} and {v.shape}."
        )
    if log_scale is not None and log_scale.shape != q.shape[2:3]:
        raise ValueError(
            f"log_scale needs one entry for each of the {q.shape[2]} heads, got {log_scale.shape}."
        )
    tiling.check_segments(segments, q.shape[1], k.shape[1])
    near = any(s.columns for s in segments)
    name = implementation or best_implementation(kernels.platform(), q.dtype, near)
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"There is no block attention implementation {name!r}; choose one of "
            f"{sorted(IMPLEMENTATIONS)} or None."
        )
    attend = functools.partial(IMPLEMENTATIONS[name], segments=segments, scale=scale)
    spec = None if name == "xla" else _spec(q.shape[0], q.shape[2])
    if spec is None:
        return attend(q, k, v, log_scale=log_scale)
    heads = PartitionSpec(spec[2])
    if log_scale is None:
        mapped = jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
        return mapped(q, k, v)

    def attend_normalized(q, k, v, log_scale):
        return attend(q, k, v, log_scale=log_scale)

    mapped = jax.shard_map(
        attend_normalized, in_specs=(spec, spec, spec, heads), out_specs=spec, check_vma=False
    )
    return mapped(q, k, v, log_scale)


def cached_attention(
    q: Float[Array, "B Lq N H"],
    k: Float[Array, "B n N H"],
    v: Float[Array, "B n N H"],
    cached: Sequence[tuple[Float[Array, "blocks B _ D"], Float[Array, "blocks B _ D"]]],
    block: Int[Array, ""],
    segments: tuple[KeySegment, ...],
    *,
    scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "B Lq N H"]:
    """`block_attention` to keys and values of earlier levels, in front, and of this one.

    Forward only. On TPU, queries that see all keys read them where they lie; else a copy is made of
    those of the block.

    Args:
      q, k, v: of this level.
      cached: keys and values of earlier levels, of all blocks, D = N * H.
      block: whose keys and values.
      segments, scale, implementation: see `block_attention`.

    Returns:
      in v's dtype; logits and softmax are float32 inside.
    """
    name = implementation or best_implementation(kernels.platform(), q.dtype)
    num_keys = sum(keys.shape[2] for keys, _ in cached) + k.shape[1]
    if name != "pallas_tpu" or not all(s.sees_all(0, num_keys) for s in segments):
        k, v = reference.with_cached(k, v, cached, block)
        return block_attention(q, k, v, segments, scale=scale, implementation=name)
    attend = functools.partial(pallas_tpu.cached_attention, segments=segments, scale=scale)
    spec = _spec(q.shape[0], q.shape[2])
    if spec is None:
        return attend(q, k, v, cached, block)
    stacked = PartitionSpec(None, *spec[:3])
    mapped = jax.shard_map(
        attend,
        in_specs=(spec, spec, spec, stacked, PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )
    return mapped(q, k, v, cached, block)
