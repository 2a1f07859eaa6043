"""Fine-tuning: what a transformer takes over from the checkpoint that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from var_jax.build.adapters import adapter_of, base_folder
from var_jax.build.config import flat
from var_jax.build.loading import LoadedTokenizer
from var_jax.build.modules import network
from var_jax.build.sections import ConfigError
from var_jax.checkpoint import files
from var_jax.parallel import sharding
from var_jax.transformer.layers import init_std
from var_jax.transformer.masked_branch import MaskedBranch

_CLASSES, _HEAD, _MASKED = "transformer/class_embedding", "head/", "masked/"
#: Keys that decide which parameters a transformer has, and of which shapes.
_SHAPING = (
    "patch_nums",
    "model.transformer",
    "model.depth",
    "model.width",
    "model.num_heads",
    "model.mlp_ratio",
    "model.qk_norm",
    "model.shared_adaln",
    "model.cross_attention",
    "model.cross_norm",
    "model.conditioner.kind",
    "model.positions.kind",
    "model.mixer.kind",
    "model.head.kind",
    "model.masked_blocks",
)


@dataclasses.dataclass(frozen=True)
class Start:
    """How the parameters of a checkpoint become the first ones of a run.

    Attributes:
      rows: int [num_classes + 1], the row of the checkpoint's class table that each row of the
        run's takes, the last one for 'no class'; -1 is a new row. None where there is no such
        table, as with other conditions than class labels.
      seed: of the new rows.
      head: parameters at initialisation on the host, where the checkpoint's head has but a part of
        them; None where it has all.
      masked: of a network whose second end goes on from the first, where the checkpoint has none.
      summary: what is taken over, in one sentence.
    """

    rows: np.ndarray | None
    seed: int
    summary: str
    head: Any = None
    masked: MaskedBranch | None = None

    def fit(self, params: Any) -> Any:
        """The run's first parameters.

        Args:
          params: all of the checkpoint's, {'transformer': ..., 'head': ...}.

        Returns:
          The same on the host (NumPy), with the run's table of classes, all of its head's and of
          its masked branch's.
        """
        params = jax.tree.map(np.asarray, params)
        if self.head is not None:
            head = flatten_dict(self.head) | flatten_dict(params["head"])
            params = {**params, "head": unflatten_dict(head)}
        if self.masked is not None:
            branch = self.masked.start_from(params["transformer"], self.seed)
            params = {**params, "masked": {**branch, "head": params["head"]}}
        if self.rows is None:
            return params
        table = params["transformer"]["class_embedding"]
        new = np.random.default_rng(self.seed).standard_normal((len(self.rows), table.shape[1]))
        new = (new * init_std(table.shape[1])).astype(table.dtype)
        rows = np.where(self.rows[:, None] < 0, new, table[self.rows])
        return {**params, "transformer": {**params["transformer"], "class_embedding": rows}}


def start_from(
    path: epath.PathLike,
    config: ConfigDict,
    tokenizer: LoadedTokenizer,
    class_names: Sequence[str],
) -> Start:
    """Checks a checkpoint against the run that shall start from it, without reading its arrays.

    Classes are matched by name where the checkpoint knows its names. Where it does not, equally
    many classes are taken for the same, and of another number only 'no class' is known.

    Args:
      path: workdir of a transformer, a training's or a converted one.
      config: of the run, with its number of classes filled in.
      tokenizer: of the run.
      class_names: of the run's data, in label order.

    Raises:
      ConfigError: it is no transformer, speaks to another tokenizer, or is of another shape; the
        sentence names the keys to turn.
    """
    found = files.inspect(path)
    metadata = found.metadata
    kind = metadata.get("kind")
    if kind != "transformer":
        raise ConfigError(
            f"config.train.initial_checkpoint is {path}, which holds a "
            f"{kind or 'checkpoint of unknown kind'}; give the workdir of a transformer."
        )
    theirs = metadata.get("tokenizer_fingerprint", "")
    if theirs != tokenizer.fingerprint:
        raise ConfigError(
            f"The transformer in {path} was trained with the tokenizer {theirs[:12]}, but "
            f"config.tokenizer_checkpoint is {tokenizer.fingerprint[:12]}, whose tokens mean "
            f"something else; give its own, such as {epath.Path(path) / 'tokenizer'}."
        )
    # An adapter's network has the arrays of its base.
    shaped = found if adapter_of(metadata) is None else files.inspect(base_folder(path))
    new, classes = _check_shapes(path, shaped, config)
    seed = config.get("seed", 0)
    added = sum(name.startswith(_HEAD) for name in new)
    head = _head(config, seed) if added else None
    masked = network(config).masked if len(new) > added else None
    summary = f"Starting from step {found.step} of {path}: all parameters"
    if added:
        summary += f" with {added} new arrays of the head"
    if masked is not None:
        summary += f", the last {masked.depth} blocks also as those of the masked branch"
    if not classes:
        return Start(None, seed, f"{summary}.", head, masked)
    known = config.train.get("known_classes", 0)
    before = int(metadata["config"]["model"]["num_classes"])
    if known and known != before:
        raise ConfigError(
            f"config.train.known_classes is {known}, but the transformer in {path} has {before} "
            f"classes; set it to {before}, or to 0 to match classes by name."
        )
    rows, matched = _match_classes(metadata, config.model.num_classes, class_names)
    if known:
        rows[:known], matched = np.arange(known), "those that it knows"
    taken = int((rows[:-1] >= 0).sum())
    return Start(
        rows,
        seed,
        f"{summary}, the rows of {taken} of {len(rows) - 1} classes ({matched}) and of 'no class'; "
        f"{len(rows) - 1 - taken} new rows.",
        head,
        masked,
    )


def _head(config: ConfigDict, seed: int) -> Any:
    """The head's parameters at initialisation, on the host."""
    init = network(config).init_params
    made = jax.jit(lambda key: sharding.unbox(init(key)["head"]))(jax.random.key(seed))
    return jax.tree.map(np.asarray, made)


def _check_shapes(
    path: epath.PathLike, found: files.Inspection, config: ConfigDict
) -> tuple[list[str], bool]:
    """Which arrays of head and masked branch are new, and whether there is a table of classes.

    Raises:
      ConfigError: the parameters do not fit.
    """
    boxed = jax.eval_shape(network(config).init_params, jax.random.key(0))
    here = files.named_leaves(sharding.unbox(boxed))
    root = "ema" if found.metadata.get("ema") else "params"
    there = files.named_leaves(files.subtree(found.arrays, root, str(path)))
    shapes = {name: tuple(x.shape) for name, x in here.items()}
    saved = {name: tuple(x.shape) for name, x in there.items()}
    # Of the table of classes only the width must fit.
    for named in (shapes, saved):
        if _CLASSES in named:
            named[_CLASSES] = named[_CLASSES][1:]
    grown = (_HEAD,) if any(name.startswith(_MASKED) for name in saved) else (_HEAD, _MASKED)
    new = [name for name in shapes if name.startswith(grown) and name not in saved]
    if {name: shape for name, shape in shapes.items() if name not in new} == saved:
        return new, _CLASSES in shapes
    before, now = flat(found.metadata["config"]), flat(config)
    knobs = []
    for name in _SHAPING:
        a, b = (values.get(f"config.{name}", (None,))[0] for values in (before, now))
        if a != b:
            a, b = (list(x) if isinstance(x, tuple) else x for x in (a, b))
            knobs.append(f"config.{name} is {b}, there it is {a}")
    if not knobs:
        name = sorted(n for n in {**shapes, **saved} if shapes.get(n) != saved.get(n))[0]
        knobs = [f"{name} has the shape {shapes.get(name)}, there {saved.get(name)}"]
    raise ConfigError(
        f"The parameters of the transformer in {path} do not fit this run: {'; '.join(knobs)}; "
        "set what differs to what it is there."
    )


def _match_classes(
    metadata: dict[str, Any], num_classes: int, class_names: Sequence[str]
) -> tuple[np.ndarray, str]:
    """The rows of the checkpoint's table for each of the run's, and how they were matched."""
    before = int(metadata["config"]["model"]["num_classes"])
    names = metadata.get("data", {}).get("class_names")
    rows = np.full(num_classes + 1, -1)
    rows[-1] = before
    if names is not None:
        # Of classes of one name the first counts, in the checkpoint and in the data.
        there = {name: i for i, name in reversed(list(enumerate(names)))}
        rows[: len(class_names)] = [there.get(name, -1) for name in class_names]
        return rows, "matched by name"
    if before == num_classes:
        rows[:-1] = np.arange(num_classes)
        return rows, "as many as there, taken for the same"
    return rows, f"{before} there, whose names are not known"
