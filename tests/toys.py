"""The smallest resident of every axis, each a class that a config names as 'toys:Class'."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from var_jax.codecs.base import Lesson, Quantized
from var_jax.decoding import base
from var_jax.fields import Field
from var_jax.heads.base import at_level, mixed
from var_jax.network import Network
from var_jax.objectives.base import FrozenPart
from var_jax.objectives.curriculum import TrainedLevels
from var_jax.objectives.likelihood import Likelihood
from var_jax.pyramid import ScalePyramid
from var_jax.resample import resize, weighted_mean
from var_jax.transformer.condition import Condition
from var_jax.transformer.layers import Linear


class Signs(nn.Module):
    """A token is one bit of each channel's mean over a cell; every level stands for itself."""

    pyramid: ScalePyramid
    channels: int = 4

    codebook_size: ClassVar[int] = 0

    @property
    def feature_dim(self):
        return self.channels

    code_dim = encoded_dim = feature_dim

    @property
    def target(self):
        return Field("signs", (self.channels,), num_values=2)

    @property
    def source(self):
        return Field("signs", (self.pyramid.length, self.channels), num_values=2)

    def encode(self, features):
        levels = [resize(features, shape, "area") for shape in self.pyramid.shapes]
        flat = [x.reshape(x.shape[0], -1, self.channels) for x in levels]
        return (jnp.concatenate(flat, 1) > 0).astype(jnp.int32)

    read = encode

    def nearest(self, features, carry, level, weights=None):
        cells = weighted_mean(features, weights, self.pyramid.shapes[level])
        return (cells.reshape(len(cells), -1, self.channels) > 0).astype(jnp.int32)

    def lesson(self, source, pyramid=None, keys=None):
        length = (pyramid or self.pyramid).length
        carry, rows = None, [jnp.zeros_like(source[:, : self.pyramid.sizes[0]], jnp.float32)]
        for k, target in enumerate(self.pyramid.split(source)[:-1]):
            carry, row = self.advance(carry, k, target)
            rows.append(row)
        return Lesson(jnp.concatenate(rows, 1)[:, :length], source[:, :length])

    def advance(self, carry, level, target, pyramid=None):
        signs = 2.0 * target - 1.0
        x = signs.reshape(target.shape[0], *self.pyramid.shapes[level], self.channels)
        carry = resize(x, self.pyramid.grid, "bicubic")
        if level + 1 == (pyramid or self.pyramid).num_levels:
            return carry, None
        following = resize(carry, self.pyramid.shapes[level + 1], "area")
        return carry, following.reshape(carry.shape[0], -1, self.channels)

    def finish(self, carry):
        return carry

    def decode(self, targets):
        return self.features_by_level(targets)[-1]

    def features_by_level(self, targets):
        split = self.pyramid.split(targets)
        return [self.advance(None, k, target)[0] for k, target in enumerate(split)]

    def quantize(self, features, exact=False, keys=None):
        targets = self.encode(features)
        wanted = self.decode(targets)
        straight = features + jax.lax.stop_gradient(wanted - features)
        return Quantized(straight, jnp.mean(jnp.square(features - wanted)), targets, features)


@dataclasses.dataclass(frozen=True)
class SelfAndFirst:
    """A level sees all before it from `first` on."""

    first: int = 0

    def window(self, level):
        return min(self.first, level), level


class Parity(nn.Module):
    """Conditioned on whether the label is odd; 2 is nothing."""

    width: int

    @property
    def fields(self):
        return (Field("label", ()),)

    @nn.nowrap
    def read(self, batch):
        return batch["label"] % 2

    @nn.nowrap
    def null(self, given):
        return jnp.full_like(given, 2)

    @nn.nowrap
    def check(self, given):
        assert np.asarray(given).min() >= 0

    @nn.compact
    def __call__(self, given, keys=None):
        table = self.param("parity", nn.initializers.normal(), (3, self.width))
        return Condition(table[jnp.minimum(given, 2)])


class Corners(nn.Module):
    """A linear map of the coordinates, and a sign of the keys by row."""

    width: int

    def setup(self):
        self.corners = Linear((2,), (self.width,), (None, "embed"), 0.02)

    def added(self, pyramid, levels):
        return self.corners(jnp.asarray(pyramid.coordinates[pyramid.tokens(levels)], jnp.float32))

    @nn.nowrap
    def rotate(self, x, pyramid, levels):
        y = pyramid.coordinates[pyramid.tokens(levels), 0]
        return x * np.where(y < 0.5, 1.0, -1.0)[None, :, None, None].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Decay:
    """Adds up a linear map of the tokens so far; each counts `rate` of the one after it."""

    float32_params: ClassVar[tuple[str, ...]] = ()

    width: int
    rate: float = 0.5

    def layer(self, name):
        return DecayLayer(self.width, self.rate, name=name)

    def flops(self, tokens):
        return 2.0 * tokens * self.width**2


class DecayLayer(nn.Module):
    width: int
    rate: float

    @nn.compact
    def __call__(self, x, state=None):
        x = Linear((self.width,), (self.width,), ("embed", None), 0.1)(x)

        def step(total, token):
            total = self.rate * total + token
            return total, total

        state = jnp.zeros_like(x[:, 0]) if state is None else state
        state, sums = jax.lax.scan(step, state, x.swapaxes(0, 1))
        return sums.swapaxes(0, 1), state


@dataclasses.dataclass(frozen=True)
class CoinSampling:
    bias: float | tuple[float, ...] = 0.0

    def at(self, level, pyramid):
        return CoinSampling(at_level(self.bias, "bias", level, pyramid))


class Coins(nn.Module):
    """Independent bits."""

    sampling: ClassVar[type] = CoinSampling
    has_likelihood: ClassVar[bool] = True

    width: int
    target: Field

    @nn.compact
    def __call__(self, hidden):
        return Linear((self.width,), self.target.shape, ("embed", None), 0.02)(hidden)

    def loss(self, hidden, target, keys=None, pyramid=None):
        signed = jnp.where(target == 1, 1.0, -1.0) * self(hidden)
        nll = jax.nn.softplus(-signed).sum(-1)
        return nll, {"loss": nll, "accuracy": (signed > 0).mean(-1)}

    def sample(self, hiddens, weights, keys, settings):
        logits = mixed(tuple(self(h) for h in hiddens), weights) + settings.bias
        draw = jax.vmap(lambda key, x: jax.random.bernoulli(key, jax.nn.sigmoid(x)))
        bits = draw(keys, logits).astype(jnp.int32)
        return bits, bits

    @nn.nowrap
    def flops(self, tokens):
        return 2.0 * tokens * self.width * self.target.shape[0]


@dataclasses.dataclass(frozen=True)
class LastLevel:
    """Only the last level counts, `share` of it."""

    share: float = 1.0

    def weights(self, pyramid):
        last = pyramid.level_ids == pyramid.num_levels - 1
        return self.share * last / last.sum()


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Every other step trains without the last level."""

    pyramid: ScalePyramid

    def at(self, step):
        return TrainedLevels(self.pyramid.prefix(self.pyramid.num_levels - step % 2))


@dataclasses.dataclass(frozen=True)
class Penalised:
    """The likelihood and the distance to the model that the run starts from."""

    network: Network
    tokenizer: Any
    from_images: bool
    weights: Any
    curriculum: Any
    trained: Any
    strength: float = 0.1

    passes = 3

    @property
    def plain(self):
        return Likelihood(
            self.network,
            self.tokenizer,
            self.from_images,
            self.weights,
            self.curriculum,
            self.trained,
        )

    @property
    def fields(self):
        return self.plain.fields

    @property
    def held_out(self):
        return self.plain.held_out

    def at(self, step):
        return dataclasses.replace(self, trained=self.plain.at(step).trained)

    def frozen_parts(self):
        reference = FrozenPart(self.network.init_params, as_trained=True)
        return {**self.plain.frozen_parts(), "reference": reference}

    def init_params(self, key):
        return self.network.init_params(key)

    def init_stats(self):
        return ()

    def loss(self, params, frozen, stats, batch, keys, step):
        value, aux = self.plain.loss(params, frozen, stats, batch, keys, step)
        pairs = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, frozen["reference"])
        distance = sum(jax.tree.leaves(pairs))
        aux.metrics["distance"] = distance
        return value + self.strength * distance, aux

    def after_update(self, params, ema, stats, carry, key, step):
        return params, ema, stats


@dataclasses.dataclass(frozen=True)
class Unguided:
    """Plain generation without guidance, level by level."""

    guidance: Any
    sampling: Any
    cache_policy: Any = None

    def __call__(self, network, params, codec, codec_params, given, keys, *, own_params=None,
                 decode=None, keep_partial=False):  # fmt: skip
        pyramid, state = network.transformer.pyramid, base.start(network, given, keys, False)
        for k in range(pyramid.num_levels):
            hiddens, state = base.hidden_states(network, params, state, self.cache_policy)
            state = base.draw(network, params, codec, codec_params, hiddens, (1.0,),
                              self.sampling.at(k, pyramid), state)  # fmt: skip
        features = codec.apply({"params": codec_params}, state.carry, method="finish")
        return base.Generated(jnp.concatenate(state.targets, 1), features)


@dataclasses.dataclass(frozen=True)
class Forgetful:
    """Keeps the last `keep` keys of each level in the odd blocks, all in the others."""

    keep: int = 1

    def runs(self, num_blocks):
        return tuple((i,) for i in range(num_blocks))

    def compress(self, levels, run, level):
        keep = self.keep if run % 2 else None
        return tuple(
            x.replace(
                keys=x.keys[:, :, -keep:] if keep else x.keys,
                values=x.values[:, :, -keep:] if keep else x.values,
                queries=None,
            )
            for x in levels
        )


@dataclasses.dataclass(frozen=True)
class Never:
    """One token is never drawn."""

    token: int

    def __call__(self, logits, level, pyramid):
        return logits.at[..., self.token].set(-jnp.inf)
