"""A Llama of two blocks that was never trained, with a tokenizer of characters and a few merges, as a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = [*"abcdefghijklmnopqrstuvwxyzANQW0123456789 .,:?\n"]
MERGES = [("A", "n"), ("An", "s"), ("w", "e"), ("we", "r"), ("Ans", "wer"), ("b", "c"), (" ", "t"), (" t", "h")]
STORIES = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260k"


def make_tokenizer() -> Tokenizer:
    """`Answer` is one token, so are `Ans`, `wer`, `bc`, ` th`; anything else is a character."""
    words = ["<unk>", "<bos>", "<eos>", *CHARACTERS, *(left + right for left, right in MERGES)]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def write_folder(folder: Path, seed: int = 0, context: int = 64) -> Path:
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same shape and tokenizer, with other weights."""
    return write_folder(tmp_path_factory.mktemp("other-model"), seed=1)


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    if not STORIES.is_dir():
        pytest.skip("no ../shared/data/models/stories260k")
    return STORIES
