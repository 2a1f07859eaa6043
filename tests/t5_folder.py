"""A folder with a tiny T5 encoder and a tokenizer of a few pieces, as one downloads them."""

import pathlib
import shutil

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "text_encoders"
#: Of the vocabulary of 48, in which 1 ends a text and 2 stands for what is not known.
PIECES = ("<pad>", "</s>", "<unk>", "▁a", "▁red", "▁green", "▁bird", "▁", "b", "i", "r", "d", "s")


def write(folder, name="t5_v1_1"):
    """Copies a golden encoder and puts a tokenizer beside it."""
    shutil.copytree(GOLDENS / name, folder)
    made = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(PIECES)], unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.enable_padding(length=20)  # As published files have it; it must not matter.
    made.save(str(folder / "tokenizer.json"))
    return folder
