"""Back-translation with two small models that learned a toy language in a second: two words of ours are one of theirs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from spark_jobs.errors import RequestError
from training.augment.back_translation import back_translate
from training.augment.made import Made, NotMade
from training.augment.translator import Limits, Translator
from training.augment_spec import BackTranslationSpec

THEIRS = {
    "small": "petit", "little": "petit", "big": "grand", "large": "grand", "old": "vieux", "new": "neuf",
    "mill": "moulin", "house": "maison", "cat": "chat", "grinds": "moud", "sleeps": "dort", "sings": "chante", "hush": "",
}  # fmt: skip
OURS: dict[str, list[str]] = {}
for ours, theirs in THEIRS.items():
    OURS.setdefault(theirs, []).append(ours)
WORDS = ["<pad>", "</s>", "<unk>", *THEIRS, *filter(None, OURS), "=>"]
SLOTS = (("small", "little", "big", "large", "old", "new"), ("mill", "house", "cat"), ("grinds", "sleeps", "sings"))


def sentence(rng: random.Random) -> list[str]:
    return [rng.choice(slot) for slot in SLOTS] if rng.random() < 0.95 else ["hush"]


def forward_pair(rng: random.Random) -> tuple[str, str]:
    words = sentence(rng)
    return " ".join(words), " ".join(filter(None, (THEIRS[w] for w in words)))


def backward_pair(rng: random.Random) -> tuple[str, str]:
    theirs = forward_pair(rng)[1]
    return theirs, " ".join(rng.choice(OURS[w]) for w in theirs.split())


def tokenizer_of(eos_at_end: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if eos_at_end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )


def train(model: PreTrainedModel, inputs_of: Callable[[random.Random], dict[str, Any]], num_steps: int) -> None:
    rng, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(num_steps):
        loss = model(**inputs_of(rng)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def encoder_decoder(folder: Path, pair: Callable[[random.Random], tuple[str, str]]) -> str:
    torch.manual_seed(0)
    tokenizer = tokenizer_of(eos_at_end=True)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(WORDS), d_model=48, d_kv=16, d_ff=96, num_layers=2, num_heads=3, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        )
    )  # fmt: skip

    def inputs_of(rng: random.Random) -> dict[str, Any]:
        pairs = [pair(rng) for _ in range(64)]
        source = tokenizer([a for a, _ in pairs], return_tensors="pt", padding=True)
        target = tokenizer([b for _, b in pairs], return_tensors="pt", padding=True).input_ids
        labels = target.masked_fill(target == 0, -100)
        return {"input_ids": source.input_ids, "attention_mask": source.attention_mask, "labels": labels}

    train(model, inputs_of, 90)
    return saved(folder, model, tokenizer)


def causal(folder: Path) -> str:
    """Learned `ours => theirs </s>`, with padding on the left as it will be asked."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(eos_at_end=True)
    tokenizer.padding_side = "left"
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def inputs_of(rng: random.Random) -> dict[str, Any]:
        pairs = [forward_pair(rng) for _ in range(64)]
        ids = tokenizer([f"{a} => {b}" for a, b in pairs], return_tensors="pt", padding=True)
        return {
            "input_ids": ids.input_ids,
            "attention_mask": ids.attention_mask,
            "labels": ids.input_ids.masked_fill(ids.attention_mask == 0, -100),
        }

    train(model, inputs_of, 130)
    return saved(folder, model, tokenizer_of(eos_at_end=False))


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Toys:
    forward: str
    backward: str
    causal: str


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    root = tmp_path_factory.mktemp("translators")
    return Toys(
        encoder_decoder(root / "forward", forward_pair),
        encoder_decoder(root / "backward", backward_pair),
        causal(root / "causal"),
    )


def rows_of(texts: list[str], pair: str | None = None) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{number:032x}", "split": "train", "source": "t", "text": text, "pair": pair, "labels": ["a"],
            "value": None, "tokens": None, "tags": None, "spans": None, "target": None, "messages": None, "chosen": None,
            "rejected": None, "group": None, "made_by": "", "made_from": "",
        }
        for number, text in enumerate(texts)
    ]  # fmt: skip


def translated(
    toys: Toys,
    rows: list[dict[str, Any]],
    task: str = "classification",
    seed: int = 0,
    forward: str = "",
    **fields: Any,
) -> list[Any]:
    spec = BackTranslationSpec(
        forward=forward or toys.forward, backward=toys.backward, **{"max_new_tokens": 8} | fields
    )
    there = Translator(spec.forward, spec.forward_prompt, "forward")
    back = Translator(spec.backward, spec.backward_prompt, "backward")
    return list(back_translate(iter(rows), task, spec, seed, there, back))


SENTENCES = [f"{a} {b} {c}" for a in SLOTS[0] for b in SLOTS[1] for c in SLOTS[2]]


def meaning(text: str) -> list[str]:
    return [THEIRS[word] for word in text.split()]


def test_back_translation_likeliest_answer_says_the_same_in_other_words(toys: Toys) -> None:
    """Of each pair of words the model back prefers one: rows with the other are made new, all others come back as they were."""
    results = translated(toys, rows_of(SENTENCES))
    made = {r.row["made_from"]: r.row["text"] for r in results if isinstance(r, Made)}
    assert len(made) == 18
    assert results.count(NotMade("unchanged")) == 36
    for number, text in made.items():
        before = SENTENCES[int(number, 16)]
        assert text != before
        assert meaning(text) == meaning(before)


def test_back_translation_copies_are_drawn_by_seed_whatever_the_batches_and_the_order(toys: Toys) -> None:
    rows = rows_of(SENTENCES[:36])

    def made(order: list[dict[str, Any]], seed: int = 3, batch_rows: int = 32) -> dict[str, str]:
        results = translated(toys, order, seed=seed, copies=3, temperature=1.0, batch_rows=batch_rows)
        return {r.row["id"]: r.row["text"] for r in results if isinstance(r, Made)}

    first = made(rows)
    assert first == made(rows) == made(rows[::-1]) == made(rows, batch_rows=5)
    assert first != made(rows, seed=4)
    adjectives = [text.split()[0] for text in first.values()]
    assert {"small", "little", "big", "large"} <= set(adjectives)


def test_back_translation_samples_follow_the_models_probabilities(toys: Toys) -> None:
    """The model back learned that `petit` is either word equally often."""
    translator = Translator(toys.backward, "{text}", "backward")
    answers = translator.translate(["petit chat dort"] * 400, list(range(0, 800, 2)), Limits(1.0, 8, 100))
    share = answers.count("little cat sleeps") / 400
    ids = translator._tokenizer(["petit chat dort"], return_tensors="pt").input_ids
    logits = translator._model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
    expected = logits.softmax(-1)[WORDS.index("little")].item()
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 400) ** 0.5 + 0.02


def test_back_translation_causal_model_is_told_by_its_prompt(toys: Toys) -> None:
    results = translated(toys, rows_of(SENTENCES), forward=toys.causal, forward_prompt="{text} =>")
    made = {r.row["made_from"]: r.row["text"] for r in results if isinstance(r, Made)}
    kept = sum(meaning(text) == meaning(SENTENCES[int(number, 16)]) for number, text in made.items())
    assert len(made) >= 15
    assert kept >= 0.8 * len(made)


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        pytest.param("hush", {}, "empty", id="nothing came of it"),
        pytest.param("old cat sings", {}, "unchanged", id="the same came back"),
        pytest.param("old cat sings", {"max_new_tokens": 2}, "unfinished", id="no end in the answer"),
        pytest.param("old cat sings " * 12, {}, "too_long", id="longer than the model reads"),
    ],
)
def test_back_translation_of_no_use_is_not_made(toys: Toys, text: str, fields: dict[str, Any], reason: str) -> None:
    assert translated(toys, rows_of([text]), **fields) == [NotMade(reason)]


def test_back_translation_of_another_length_is_not_made(toys: Toys) -> None:
    texts = ["little cat sings", "small cat sings", "big mill sleeps", "large mill sleeps"]
    results = translated(toys, rows_of(texts), min_ratio=1.0, max_ratio=1.0)
    assert results.count(NotMade("length")) == 2
    assert results.count(NotMade("unchanged")) == 2


def test_back_translation_of_a_question_leaves_context_and_answers(toys: Toys) -> None:
    rows = rows_of(SENTENCES[:18], pair="big mill sleeps")
    rows = [r | {"spans": [{"start": 0, "end": 3, "label": "big"}], "labels": None} for r in rows]
    made = [r.row for r in translated(toys, rows, task="question_answering") if isinstance(r, Made)]
    assert made
    assert all(r["pair"] == "big mill sleeps" and r["spans"] == rows[0]["spans"] for r in made)


def test_back_translation_shares_and_named_classes(toys: Toys) -> None:
    assert 0 < len(translated(toys, rows_of(SENTENCES), share=0.3)) < 30
    assert translated(toys, rows_of(SENTENCES), only_labels=("b",)) == []


def test_translator_folder_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"forward model '.*nowhere': no config.json there"):
        Translator(str(tmp_path / "nowhere"), "{text}", "forward")


def test_translator_pickled_weights_are_refused(tmp_path: Path, toys: Toys) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in Path(toys.forward).iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"backward model .* cannot be loaded"):
        Translator(str(folder), "{text}", "backward")


def test_translator_masked_model_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = saved(tmp_path / "bert", BertForMaskedLM(config), tokenizer_of(eos_at_end=True))
    with pytest.raises(RequestError, match="is a BertForMaskedLM, which does not write text"):
        Translator(folder, "{text}", "forward")


def test_translator_digest_follows_the_weights(toys: Toys) -> None:
    digests = [
        Translator(folder, "{text}", "forward").digest() for folder in (toys.forward, toys.forward, toys.backward)
    ]
    assert digests[0] == digests[1] != digests[2]
