from recipes import load
from untrained import write_model

from var_jax import build
from var_jax.studies.training_run import train_both


def test_the_three_stages_go_on_where_they_were(tmp_path, monkeypatch):
    """In this order, the transformer's on the others' results; all done, none is entered."""
    config, calls = load("mnist5k", "smallest"), []
    config.train.num_steps = 3

    def run(config, workdir, model):
        calls.append((model, workdir, config.tokenizer_checkpoint, config.token_cache))
        if model == "transformer":
            write_model(tmp_path / model)  # at step 3

    def cache_tokens(tokenizer, output, crops):
        calls.append((str(tokenizer), str(output), crops))

    monkeypatch.setattr(build, "run", run)
    monkeypatch.setattr(build, "cache_tokens", cache_tokens)
    tokenizer, tokens, transformer = (
        str(tmp_path / n) for n in ("tokenizer", "tokens", "transformer")
    )
    for _ in range(2):
        assert str(train_both(config, tmp_path, crops=2)) == transformer
    assert calls == [
        ("tokenizer", tokenizer, "", ""),
        (tokenizer, tokens, 2),
        ("transformer", transformer, tokenizer, tokens),
    ]
    assert not config.tokenizer_checkpoint
    config.train.num_steps = 4
    train_both(config, tmp_path)
    assert len(calls) == 6
