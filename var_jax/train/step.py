"""The training step: gradient, guard, optimizer, moving average; one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from var_jax import subsets
from var_jax.objectives.base import Objective
from var_jax.parallel import sharding
from var_jax.train.state import TrainState

#: Two streams of random numbers from one seed: per example, and per step.
_EXAMPLE_STREAM, _STEP_STREAM = 0, 1


def example_keys(seed: int, index: jax.Array) -> jax.Array:
    """One PRNG key an example from its global sample number int [B]: the same whatever the
    batch size, the number of microbatches and the number of devices."""
    base = jax.random.fold_in(jax.random.key(seed), _EXAMPLE_STREAM)
    return jax.vmap(jax.random.fold_in, (None, 0))(base, index)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int = 0,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    trained: Sequence[str] = (),
) -> Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the pure function of one update; jit it with the state donated.

    A loss or a gradient norm that is not finite leaves parameters, optimizer, moving average
    and stats as they were, to the bit, and is counted in `TrainState.skipped`.

    Args:
      objective: what is minimised.
      optimizer: updates `params`; gets the keyword `step` if it takes any.
      seed: of all random choices.
      microbatches: parts that the batch is cut into, one after the other; the gradient is
        that of the whole batch.
      ema_decay: of the moving average of the parameters; 0 where the state has none. Ramps
        up as min(decay, (1 + step) / (10 + step)), so that early parameters fade.
      trained: patterns of the parameters that train, see `subsets.split`; () is all. The others
        have no gradient and stay as they are to the bit.

    Returns:
      (state, frozen, batch) -> (state, metrics); a batch holds 'index' int32 [B], the global
      sample numbers, beside what the objective reads. The metrics are the objective's, and
      gradient_norm, parameter_norm, skipped (0 or 1) and skipped_in_row.
    """

    update = optax.with_extra_args_support(optimizer).update

    def gradients(state, frozen, batch):
        keys = example_keys(seed, batch["index"])
        params, rest = subsets.split(state.params, trained)

        def loss(params, batch, keys):
            params = subsets.join(params, rest)
            return objective.loss(params, frozen, state.stats, batch, keys, state.step)

        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        if microbatches == 1:
            (value, aux), grads = value_and_grad(params, batch, keys)
            return value, aux.metrics, aux.carry, grads

        def cut(x):
            # Every device keeps its own examples: microbatch j takes each device's j-th part.
            x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
            return x.swapaxes(0, 1)

        def body(total, part):
            (value, aux), grads = value_and_grad(params, *part)
            total = jax.tree.map(jnp.add, total, (value, aux.metrics, grads))
            return total, aux.carry

        def join(x):
            # Undoes `cut`.
            return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        parts = jax.tree.map(cut, (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_grad, params, *first)
        (value, aux), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, carries = jax.lax.scan(body, (value, aux.metrics, grads), parts)
        value, metrics, grads = jax.tree.map(lambda x: x / microbatches, total)
        return value, metrics, jax.tree.map(join, carries), grads

    def step(state, frozen, batch):
        value, metrics, carry, grads = gradients(state, frozen, batch)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        params, rest = subsets.split(state.params, trained)
        updates, opt_state = update(grads, state.opt_state, params, step=state.step)
        params = subsets.join(optax.apply_updates(params, updates), rest)
        base = jax.random.fold_in(jax.random.key(seed), _STEP_STREAM)
        key = jax.random.fold_in(base, state.step)
        params, ema, stats = objective.after_update(
            params, state.ema, state.stats, carry, key, state.step
        )
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            averages, rest = subsets.split(ema, trained)
            newest, _ = subsets.split(params, trained)
            averages = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), averages, newest)
            ema = subsets.join(averages, rest)

        def guard(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new = TrainState(
            step=state.step + 1,
            params=guard(params, state.params),
            opt_state=guard(opt_state, state.opt_state),
            ema=guard(ema, state.ema),
            stats=guard(stats, state.stats),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        metrics = dict(
            metrics,
            gradient_norm=norm,
            parameter_norm=optax.global_norm(new.params),
            skipped=1 - finite.astype(jnp.int32),
            skipped_in_row=new.skipped,
        )
        return new, metrics

    return step


def jit_train_step(step: Callable[..., Any], shardings: Any, mesh: Mesh) -> Callable[..., Any]:
    """The step of `make_train_step` as it is trained and planned: its state donated, its metrics
    on every device.

    Args:
      step: (state, frozen, batch) -> (state, metrics).
      shardings: of the state.
      mesh: on which they lie.
    """
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated_sharding(mesh)),
        compiler_options=sharding.compiler_options(mesh),
    )
