"""Make the tokenizer: train byte-level BPE, Unigram or WordPiece on the documents, or import a folder that holds a tokenizer.json.

Training reads documents in the order of their ids, which are hashes, so a bounded sample is a random one and always the
same. Files: tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import orc, parquet

from spark_jobs.errors import DataError, RequestError
from spark_jobs.job import Job
from spark_jobs.manifests import Documents
from spark_jobs.requests import Outcome
from spark_jobs.specs import TokenizerModel, TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
BATCH_ROWS = 512
INSIDE = "▁"  # before a piece of WordPiece that continues a word
MAX_WORD = 64  # bytes; the search for pieces grows with its square
NO_LIMIT = 10**30  # what transformers writes for a tokenizer without a longest input

# Names under which imported tokenizers keep the three tokens we need; the first that is there is taken.
KNOWN = {
    "bos": (BOS, "<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos": (EOS, "</s>", "<|end_of_text|>", "<eos>", "[SEP]", "<|endoftext|>"),
    "pad": (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
}


def make_tokenizer(job: Job, spec: TokenizerSpec) -> Outcome:
    """Raises: RequestError if a folder to import is wrong; DataError if there is no text to train on."""
    if spec.folder:
        tokenizer = import_tokenizer(Path(spec.folder))
    else:
        documents = job.input("documents", Documents)
        if documents.num_rows == 0:
            raise DataError(f"{documents.address}: no document to train a tokenizer on; look at the rejects before it")
        tokenizer = train_tokenizer(sample_texts(documents, spec.max_train_bytes), spec.vocab_size, spec.model)
    names = {
        role: next(name for name in known if tokenizer.token_to_id(name) is not None) for role, known in KNOWN.items()
    }
    data = job.out / "data"
    data.mkdir(parents=True)
    tokenizer.save(str(data / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names["bos"],
        "eos_token": names["eos"],
        "pad_token": names["pad"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": NO_LIMIT,
    }
    (data / "tokenizer_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    vocab_size = tokenizer.get_vocab_size()
    ids = {f"{role}_id": tokenizer.token_to_id(name) for role, name in names.items()}
    return Outcome(num_rows=vocab_size, format="tokenizer", fields={"vocab_size": vocab_size} | ids)


def train_tokenizer(texts: Iterator[str], vocab_size: int, model: TokenizerModel = "bpe") -> Tokenizer:
    """Byte-level (GPT-2's pre-tokenizer, no prefix space): every text can be encoded and comes back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if model == "wordpiece":
        return _train_wordpiece(texts, vocab_size)
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": [BOS, EOS, PAD],
        "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": False,
    }
    tokenizer = Tokenizer(models.BPE() if model == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(**common) if model == "bpe" else trainers.UnigramTrainer(**common)
    )
    return tokenizer


def _train_wordpiece(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """WordPiece over bytes. Continuations are marked by a character that no byte is written as, every byte has both forms,
    and words are bounded, so that nothing is ever unknown and decoding is exact.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    settings: dict[str, Any] = {
        "unk_token": PAD,
        "continuing_subword_prefix": INSIDE,
        "max_input_chars_per_word": MAX_WORD,
    }
    tokenizer = Tokenizer(models.WordPiece(**settings))
    words = pre_tokenizers.Split(Regex(f".{{{MAX_WORD}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False), words])
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size - len(alphabet), 2 * len(alphabet) + 3),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=alphabet,
        continuing_subword_prefix=INSIDE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    for character in alphabet:
        vocabulary.setdefault(INSIDE + character, len(vocabulary))
    tokenizer.model = models.WordPiece(vocab=vocabulary, **settings)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(INSIDE, ""), decoders.ByteLevel()])
    return tokenizer


def import_tokenizer(folder: Path) -> Tokenizer:
    """Raises: RequestError if the folder holds no usable tokenizer.json, or one without beginning, end and padding."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise RequestError(
            f"tokenizer.folder={str(folder)!r}: no tokenizer.json there; wanted a local folder that holds one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises bare Exception
        raise RequestError(f"{path}: not a tokenizer that `tokenizers` reads ({err}); export it again") from err
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if all(tokenizer.token_to_id(name) is None for name in KNOWN["pad"]):
        tokenizer.add_special_tokens([PAD])
    for role in ("bos", "eos"):
        if all(tokenizer.token_to_id(name) is None for name in KNOWN[role]):
            tokenizer.add_special_tokens([KNOWN[role][0]])
    return tokenizer


def sample_texts(documents: Documents, max_bytes: int) -> Iterator[str]:
    """Texts in the order of document ids until `max_bytes` of UTF-8 are reached; at least one."""
    size = 0
    for path in documents.paths("data"):
        for batch in _batches(path, documents.format):
            for text in batch.to_pylist():
                yield text
                size += len(text.encode())
                if size >= max_bytes:
                    return


def _batches(path: str, table_format: str) -> Iterator[pa.Array]:
    if table_format == "parquet":
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=["text"]):
                yield batch.column(0)
    else:
        table = orc.ORCFile(path)
        for stripe in range(table.nstripes):
            yield table.read_stripe(stripe, columns=["text"]).column(0)
