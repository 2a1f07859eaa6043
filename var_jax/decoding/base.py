"""What decoders share: the state of a generation and the step that draws one level."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from var_jax.codecs.base import Codec
from var_jax.decoding.guidance import (
    Guidance,
    InsideNetwork,
    LooksBack,
    is_guided,
    weights_of,
)
from var_jax.decoding.twins import mixed_pairs, of_pairs, pairs
from var_jax.heads.base import mixed
from var_jax.network import Network
from var_jax.pyramid import ScalePyramid
from var_jax.transformer.cache import Cache, CachePolicy, Run


@flax.struct.dataclass
class Generated:
    """What a decoder returns.

    Attributes:
      targets: [B, L, ...], such as tokens int32 [B, L].
      features: float32 [B, h, w, C], to be decoded by the autoencoder.
      partial: the features after each level, K arrays; empty unless asked for.
    """

    targets: jax.Array
    features: jax.Array
    partial: tuple[jax.Array, ...] = ()


class Decoder(Protocol):
    """A frozen dataclass of settings that owns the loop over levels.

    Example i depends on what is asked for it and its key only, not on the batch it is in; shapes
    are static, so that a generation is compiled as one program.

    Attributes:
      guidance: weight of each level.
      sampling: the head's settings, see `Head`.
    """

    guidance: Guidance
    sampling: Any

    def __call__(
        self,
        network: Network,
        params: Any,
        codec: Codec,
        codec_params: Any,
        given: Any,
        keys: jax.Array,
        *,
        own_params: Any = None,
        decode: Callable[[jax.Array], jax.Array] | None = None,
        keep_partial: bool = False,
    ) -> Generated:
        """Draws one pyramid for each example.

        Args:
          network, params: of the model.
          codec, codec_params: of the tokenizer.
          given: what is asked for, see `Conditioner`; such as labels int32 [B].
          keys: one PRNG key for each example [B].
          own_params: of further networks that the decoder holds; None where there are none.
          decode: features [B, h, w, C] -> images [B, H, W, c] in [-1, 1], for decoders that look at
            what they draw.
          keep_partial: also return the features after each level.
        """


@flax.struct.dataclass
class State:
    """A generation between two levels; examples are on axis 0 of every array but the cache's.

    Attributes:
      given: what is asked for; while `paired`, each example beside its unconditional twin.
      keys: one PRNG key for each example [B].
      cache: of the transformer, paired as `given`.
      pyramid: that is drawn.
      carry: of the codec.
      inputs: of the levels up to the next one, [B, n, D] each; None for level 0.
      targets: of the levels drawn so far.
      before: what the level before was drawn from, hidden states [B, m, C] mixed by guidance; None
        unless the guidance looks back at it.
      paired: whether guidance runs.
      blocks: of the transformer that compute the next levels; None is all.
    """

    given: Any
    keys: jax.Array
    cache: Cache
    pyramid: ScalePyramid = flax.struct.field(pytree_node=False)
    carry: Any = None
    inputs: tuple[jax.Array | None, ...] = (None,)
    targets: tuple[jax.Array, ...] = ()
    before: jax.Array | None = None
    paired: bool = flax.struct.field(pytree_node=False, default=False)
    blocks: Run | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def level(self) -> int:
        """The next level."""
        return len(self.targets)

    def reindex(self, rows: Int[jax.Array, " b"]) -> State:
        """The state of these examples, which may repeat."""
        twins = jnp.stack([2 * rows, 2 * rows + 1], 1).reshape(-1) if self.paired else rows
        asked = jax.tree.map(lambda x: x[twins], self.given)
        rest = (self.keys, self.carry, self.inputs, self.targets, self.before)
        keys, carry, inputs, targets, before = jax.tree.map(lambda x: x[rows], rest)
        return self.replace(
            given=asked,
            keys=keys,
            cache=self.cache.reindex(twins),
            carry=carry,
            inputs=inputs,
            targets=targets,
            before=before,
        )


def start(
    network: Network,
    given: Any,
    keys: jax.Array,
    paired: bool,
    pyramid: ScalePyramid | None = None,
) -> State:
    """The state before level 0.

    Args:
      network: what draws.
      given, keys: see `Decoder`.
      paired: whether level 0 or a later one is guided.
      pyramid: to draw; the transformer's own by default.
    """
    if paired:
        # Each example beside its unconditional twin: a cut batch axis keeps both on one device.
        null = network.transformer.conditioning().null(given)
        given = jax.tree.map(pairs, given, null)
    pyramid = network.transformer.pyramid if pyramid is None else pyramid
    return State(given, keys, Cache(), pyramid, paired=paired)


def unpaired(state: State) -> State:
    """The state without the unconditional twins, once no level is guided any more."""
    if not state.paired:
        return state
    return state.replace(
        given=jax.tree.map(lambda x: of_pairs(x, 0), state.given),
        cache=jax.tree.map(lambda x: of_pairs(x, 0, axis=1), state.cache),
        paired=False,
    )


def hidden_states(
    network: Network,
    params: Any,
    state: State,
    policy: CachePolicy | None = None,
    mixed_after: tuple[int, ...] = (),
    weight: float | jax.Array = 0.0,
) -> tuple[tuple[jax.Array, ...], State]:
    """Runs the transformer over the levels that its cache has not seen, up to the next one.

    Args:
      network, params: of the model.
      state: before the level.
      policy: of the cache.
      mixed_after: see `InsideNetwork`; alike at all levels, without a policy.
      weight: t of guidance there.

    Returns:
      Hidden states of the next level [B, n, C], conditional and, while paired, unconditional; and
      the state with the new cache.
    """
    pyramid, level = state.pyramid, state.level
    # A model that takes over midway reads all levels before in the same pass.
    levels = range(level if state.cache.modulation is not None else 0, level + 1)
    inputs = [state.inputs[k] for k in levels if k > 0]
    if inputs and levels.start == 0:
        inputs = [jnp.zeros((inputs[0].shape[0], pyramid.sizes[0], inputs[0].shape[2])), *inputs]
    read = jnp.concatenate(inputs, axis=1) if inputs else None
    if read is not None and state.paired:
        read = pairs(read, read)
    runs = policy and policy.runs(network.transformer.depth)
    if state.blocks is not None:
        runs = (state.blocks,)
    behind = None
    if mixed_after:
        if runs:
            raise ValueError(
                "Guidance inside of the network mixes what all of its blocks make; choose another "
                "guidance, or neither a cache policy nor fewer blocks at fine levels."
            )
        ends = (0, *(n + 1 for n in mixed_after), network.transformer.depth)
        runs = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends) if b > a)
        if state.paired and is_guided([weight]):
            behind = functools.partial(mixed_pairs, weight, len(mixed_after))
    hidden, cache = network.hidden(
        params,
        read,
        state.given,
        pyramid=pyramid,
        levels=levels,
        cache=state.cache,
        runs=runs,
        keep_queries=policy is not None,
        behind=behind,
    )
    if policy is not None:
        kept = tuple(policy.compress(run, i, level) for i, run in enumerate(cache.runs))
        cache = cache.replace(runs=kept)
    hidden = hidden[:, -pyramid.sizes[level] :]
    twins = (of_pairs(hidden, 0), of_pairs(hidden, 1)) if state.paired else (hidden,)
    return twins, state.replace(cache=cache)


def conditions(
    network: Network,
    params: Any,
    state: State,
    guidance: Guidance,
    policy: CachePolicy | None = None,
) -> tuple[tuple[jax.Array, ...], tuple[float, ...], State]:
    """What the next level is drawn from: hidden states, and how guidance mixes them.

    Args:
      network, params, policy: see `hidden_states`.
      state: before the level.
      guidance: t of each level: (1 + t) cond - t uncond, or cond alone at 0; and, if it looks back,
        what steers away from the level before, which the model itself must have drawn.

    Returns:
      Hidden states [B, n, C], the conditional ones first; the weight of each; the state with the
      new cache.
    """
    level, pyramid = state.level, state.pyramid
    weights = weights_of(guidance, pyramid)
    if not is_guided(weights[level:]):
        # The unconditional half runs up to the last guided level: later ones do not look at it.
        state = unpaired(state)
    t = weights[level]
    if isinstance(guidance, InsideNetwork):
        after = guidance.mixed_after(network.transformer.depth)
        hiddens, state = hidden_states(network, params, state, policy, after, t)
        return hiddens[:1], (1.0,), state
    hiddens, state = hidden_states(network, params, state, policy)
    mix = (1 + t, -t) if is_guided([t]) else (1.0,)
    hiddens = hiddens[: len(mix)]
    if not isinstance(guidance, LooksBack):
        return hiddens, mix, state
    before, beta = state.before, guidance.strength(level, pyramid)
    state = state.replace(before=mixed(hiddens, mix))
    if before is not None and beta != 0:
        hiddens = (*hiddens, guidance.carried(before, level, pyramid))
        mix = (*((1 + beta) * weight for weight in mix), -beta)
    return hiddens, mix, state


def sample(
    network: Network,
    params: Any,
    hiddens: tuple[jax.Array, ...],
    weights: tuple[float, ...],
    settings: Any,
    state: State,
) -> tuple[jax.Array, jax.Array]:
    """A draw of the next level from hidden states; see `Head.sample`.

    Args:
      network, params: of the model whose head draws.
      hiddens, weights, settings: see `Head.sample`.
      state: before the level.
    """
    level_keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.level)
    return network.sample(params, hiddens, weights, level_keys, settings)


def add(codec: Codec, codec_params: Any, target: jax.Array, code: jax.Array, state: State) -> State:
    """The state with its next level.

    Args:
      codec, codec_params: of the tokenizer.
      target: of the level.
      code: what the codec accumulates for it, see `Head.sample`.
      state: before the level.
    """
    carry, following = codec.apply(
        {"params": codec_params}, state.carry, state.level, code, state.pyramid, method="advance"
    )
    return state.replace(
        carry=carry, inputs=(*state.inputs, following), targets=(*state.targets, target)
    )


def draw(
    network: Network,
    params: Any,
    codec: Codec,
    codec_params: Any,
    hiddens: tuple[jax.Array, ...],
    weights: tuple[float, ...],
    settings: Any,
    state: State,
) -> State:
    """Draws the next level from hidden states and adds it; see `sample` and `add`."""
    target, code = sample(network, params, hiddens, weights, settings, state)
    return add(codec, codec_params, target, code, state)


def generate(
    models: Mapping[int, tuple[Network, Any]],
    codec: Codec,
    codec_params: Any,
    given: Any,
    keys: jax.Array,
    pyramid: ScalePyramid,
    guidance: Guidance,
    sampling: Any,
    policy: CachePolicy | None = None,
    keep_partial: bool = False,
    blocks: Mapping[int, Run] | None = None,
) -> Generated:
    """Draws level after level.

    Args:
      models: network and parameters by the first level that they draw; level 0 has some.
      codec, codec_params, given, keys, keep_partial: see `Decoder`.
      pyramid: to draw.
      guidance, sampling: see `Decoder`.
      policy: of the cache.
      blocks: those of one model that go on alone from a level on, by the level; without a policy.
    """
    network, params = models[0]
    paired = is_guided(weights_of(guidance, pyramid))
    state, partial = start(network, given, keys, paired, pyramid), []
    for k in range(pyramid.num_levels):
        if k > 0 and k in models:
            # An empty cache: the next pass reads all levels before.
            network, params = models[k]
            state = state.replace(cache=Cache(), before=None)
        if blocks and k in blocks:
            state = state.replace(cache=state.cache.of_blocks(blocks[k]), blocks=blocks[k])
        hiddens, mix, state = conditions(network, params, state, guidance, policy)
        settings = sampling.at(k, pyramid)
        state = draw(network, params, codec, codec_params, hiddens, mix, settings, state)
        if keep_partial:
            partial.append(codec.apply({"params": codec_params}, state.carry, method="finish"))
    features = codec.apply({"params": codec_params}, state.carry, method="finish")
    return Generated(jnp.concatenate(state.targets, axis=1), features, tuple(partial))


def surprise(
    network: Network,
    params: Any,
    hidden: jax.Array,
    target: jax.Array,
    shape: tuple[int, int],
) -> Float[jax.Array, "B n"]:
    """Negative log likelihood in nats of the targets of one level.

    Args:
      network, params: of a model whose head has a likelihood.
      hidden: of the level [B, n, C], conditional.
      target: [B, n, ...].
      shape: of the level.
    """
    return network.loss(params, hidden, target, None, ScalePyramid((shape,)))[1]["loss"]


def several(keys: jax.Array, count: int, first: int) -> jax.Array:
    """Each key, and count - 1 of its own beside it; the levels of the first fold in 0 .. first.

    Args:
      keys: [B].
      count: of keys for each.
      first: number of levels.

    Returns:
      Keys [B * count], those that belong together side by side.
    """
    numbers = range(first, first + count - 1)
    others = [jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in numbers]
    return jnp.stack([keys, *others], 1).reshape(-1)
