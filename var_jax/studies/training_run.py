"""Both models of a config, trained one after the other."""

from __future__ import annotations

from etils import epath
from ml_collections import ConfigDict

from var_jax import build, checkpoint


def train_both(config: ConfigDict, workdir: epath.PathLike, *, crops: int = 4) -> epath.Path:
    """Trains the tokenizer, caches its tokens, and trains the transformer on them.

    Called again, it goes on where it was; where all is done, it does nothing.

    Args:
      config: of both models; stays as it is.
      workdir: local or gs:// directory; gets tokenizer/, tokens/ and transformer/.
      crops: augmented copies of each training image in the token cache.

    Returns:
      the transformer's workdir, for `var_jax.load`.

    Raises:
      ValueError: the run that is there has another meaning.
    """
    folder, config = epath.Path(workdir), config.copy_and_resolve_references()
    tokenizer, tokens, transformer = (folder / x for x in ("tokenizer", "tokens", "transformer"))
    if _is_done(transformer, config.train.num_steps):
        return transformer
    build.run(config.copy_and_resolve_references(), str(tokenizer), "tokenizer")
    build.cache_tokens(tokenizer, tokens, crops=crops)
    config.update(tokenizer_checkpoint=str(tokenizer), token_cache=str(tokens))
    build.run(config, str(transformer), "transformer")
    return transformer


def _is_done(transformer: epath.Path, num_steps: int) -> bool:
    try:
        return checkpoint.inspect(transformer).step >= num_steps
    except FileNotFoundError:
        return False
