"""Translation and summarization: what is learned of a row, what is cut, the loss beside transformers' own, what is written."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from spark_jobs.errors import DataError, RequestError
from training.finetune.examples import encode_rows
from training.finetune.generation import PROMPT, answer_perplexity
from training.finetune.kinds import make_task
from training.finetune.methods import apply_method
from training.finetune.score import predict_rows
from training.finetune.task import Unusable
from training.finetune.writing import fitting
from training.finetune_spec import MethodSpec, TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.pretrain.loss import IGNORED, count_targets

END, START, PAD = 4, 2, 0  # ids of </s>, [CLS], [PAD] in the tokenizer of these tests
NOUNS = ("cat", "dog", "sun", "moon", "red", "blue", "green", "yes")
FAST: dict[str, Any] = {
    "sequences_per_step": 16, "micro_batch": 16, "optimizer": {"learning_rate": 5e-3, "weight_decay": 0.0},
    "schedule": {"kind": "linear", "warmup_share": 0.05}, "dropout": 0.0,
}  # fmt: skip


def row(text: str | None, target: str | None, number: int = 0) -> dict[str, Any]:
    return {"id": f"{number:032x}", "text": text, "target": target}


SENTENCES = [
    row("the cat runs", "cat the", 1),
    row("a big dog sees the small sun and the moon", "dog", 2),
    row("one two", "two one two one three", 3),
]


def tiny_t5(size: int) -> T5ForConditionalGeneration:
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=PAD, eos_token_id=END,
        decoder_start_token_id=PAD, dropout_rate=0.0, initializer_factor=2.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).double().eval()


def tiny_llama(size: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def made(make_tokenizer):
    """A task with an untrained model of its kind."""

    def make(family: str, **spec: Any) -> Any:
        tokenizer = make_tokenizer(wrapped=False, closed=family == "t5")
        model: Any = (tiny_t5 if family == "t5" else tiny_llama)(len(tokenizer))
        model.config.architectures = [type(model).__name__]
        task: Any = make_task(TaskSpec(**({"kind": "translation"} | spec)), tokenizer, (), model.config)
        return task, model, tokenizer

    return make


def examples_of(task: Any, rows: list[dict[str, Any]] = SENTENCES) -> list[Any]:
    return [example for one in rows for example in task.encode(one)]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_writing_loss_is_the_one_of_transformers_in_float64(made, family: str) -> None:
    task, model, _ = made(family)
    examples = examples_of(task)
    inputs = task.collate(examples)
    ours = task.loss(model(**inputs.model), inputs) / count_targets(inputs.targets_BS)
    if family == "t5":  # shifts `labels` to the right by itself
        labels = inputs.targets_BS
        theirs = model(**{k: v for k, v in inputs.model.items() if not k.startswith("decoder")}, labels=labels).loss
    else:  # shifts logits against labels by itself
        width = inputs.model["input_ids"].shape[1]
        padded = [[*e.features["labels"], *[IGNORED] * (width - len(e.features["labels"]))] for e in examples]
        theirs = model(**inputs.model, labels=torch.tensor(padded)).loss
    assert ours.dtype == torch.float64
    same = 1e-12 if family == "t5" else 1e-7  # of a causal model transformers rounds the logits to float32
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=same)


def test_decoder_reads_the_start_token_and_the_target_without_its_end(made) -> None:
    task, _, tokenizer = made("t5")
    inputs = task.collate(examples_of(task, [row("red", "big cat", 1), row("red blue", "dog", 2)]))
    big, cat, dog = tokenizer.convert_tokens_to_ids(["big", "cat", "dog"])
    assert inputs.targets_BS.tolist() == [[big, cat, END], [dog, END, IGNORED]]
    assert inputs.model["decoder_input_ids"].tolist() == [[PAD, big, cat], [PAD, dog, PAD]]
    assert inputs.model["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert inputs.model["input_ids"][:, -1].tolist() == [END, END] or inputs.model["input_ids"].tolist()[0][1] == END


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_end_token_is_learned_where_padding_has_its_id(made, family: str) -> None:
    """Case A10: masks are made of places, so the end is learned and the padding behind it is not."""
    task, _, tokenizer = made(family)
    tokenizer.pad_token = tokenizer.eos_token
    task.pad_id = END
    inputs = task.collate(examples_of(task))
    for target, ids in zip(("cat the", "dog", "two one two one three"), inputs.targets_BS.tolist(), strict=True):
        learned = [number for number in ids if number != IGNORED]
        assert learned == [*tokenizer.convert_tokens_to_ids(target.split()), END]
    lengths = [len(example.features["input_ids"]) for example in examples_of(task)]
    assert inputs.model["attention_mask"].sum(1).tolist() == lengths


def test_padding_of_any_id_leaves_loss_and_text_as_they_are(made) -> None:
    for family in ("t5", "llama"):
        task, model, _ = made(family, max_target_length=6)
        found = []
        for pad_id in (PAD, END, 9):
            task.pad_id = pad_id
            inputs = task.collate(examples_of(task))
            found.append((float(task.loss(model(**inputs.model), inputs).detach()), task.predict(model, inputs)))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
        assert found[0][0] == pytest.approx(found[2][0], rel=1e-12)
        assert len({tuple(p["text"] for p in predictions) for _, predictions in found}) == 1


def test_prompt_of_a_causal_model_is_not_learned_and_not_zero(made) -> None:
    """Case A15: IGNORED is -100; a 0 would teach the padding token."""
    task, _, _ = made("llama")
    (example,) = task.encode(row("the sun", "moon"))
    prompt = example.features[PROMPT]
    assert example.features["input_ids"][: len(prompt)] == prompt
    assert example.features["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert count_targets(task.collate([example]).targets_BS) == 2  # moon, end


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_target_cut_to_nothing_is_counted(made, family: str) -> None:
    """Case A14. Rows in are examples and what is not usable."""
    task, _, _ = made(family, max_target_length=1)
    rows = [row("the cat", "dog", 1), row(" ", "dog", 2), row("cat", "", 3), row("cat", None, 4), row(None, "dog", 5)]
    examples, unusable = encode_rows(task, iter(rows))
    assert (examples, unusable) == ([], Counter(no_target=3, empty_text=2))
    task, _, _ = made(family, max_target_length=2)
    examples, unusable = encode_rows(task, iter(rows))
    assert len(examples) + sum(unusable.values()) == len(rows)
    assert [number for number in task.collate(examples).targets_BS[0].tolist() if number != IGNORED][-1] == END


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_long_target_is_cut_and_still_ends(made, family: str) -> None:
    task, _, tokenizer = made(family, max_target_length=3)
    (example,) = task.encode(row("cat", "one two three one two three"))
    learned = [n for n in task.collate([example]).targets_BS[0].tolist() if n != IGNORED]
    assert learned == [*tokenizer.convert_tokens_to_ids(["one", "two"]), END]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_long_source_is_cut_at_its_end_and_what_the_prompt_says_behind_it_stays(made, family: str) -> None:
    task, _, tokenizer = made(family, max_length=8, prompt="big : {text} good")
    (example,) = task.encode(row("one two three " * 9, "dog cat"))
    source = example.features["input_ids" if family == "t5" else PROMPT]
    said = tokenizer.convert_ids_to_tokens(source)
    assert len(said) <= 8
    assert [token for token in said if token not in ("[CLS]", "</s>")][:3] == ["big", ":", "one"]
    assert said[-2:] == ["good", "</s>"] if family == "t5" else said[-1] == "good"
    assert "two" in said
    targets = task.collate([example]).targets_BS[0].tolist()
    assert [n for n in targets if n != IGNORED] == [*tokenizer.convert_tokens_to_ids(["dog", "cat"]), END]


def test_prompt_that_leaves_no_room_for_the_text_makes_a_row_unusable(made) -> None:
    task, _, _ = made("llama", max_length=8, prompt="one two three one two three one two {text}")
    with pytest.raises(Unusable, match="no_text_left"):
        task.encode(row("cat", "dog"))


@given(st.text(alphabet="ab{} \n\u4e2d", max_size=60), st.integers(0, 40))
def test_fitting_keeps_a_beginning_of_the_text_that_fits(text: str, limit: int) -> None:
    def ids_of(one: str) -> list[int]:
        return [7, *(ord(c) for c in one), 8, 9]

    try:
        ids = fitting(text, ids_of, limit)
    except Unusable:
        assert len(ids_of(text)) > limit
        return
    assert len(ids) <= max(limit, 3)
    assert text.startswith("".join(map(chr, ids[1:-2])))
    assert ids[-2:] == [8, 9]
    if len(ids_of(text)) <= limit:
        assert ids == ids_of(text)


def test_braces_of_a_text_are_text(made) -> None:
    task, _, tokenizer = made("llama", prompt="who : {text} what :")
    (example,) = task.encode(row("{text} { cat } {0}", "dog"))
    assert tokenizer.convert_ids_to_tokens(example.features[PROMPT])[:3] == ["[CLS]", "who", ":"]
    assert tokenizer.convert_ids_to_tokens(example.features[PROMPT]).count("cat") == 1


@pytest.mark.parametrize(("text", "target"), [("a </s> b", "cat"), ("a cat", "cat </s> dog"), ("[CLS] cat", "dog")])
def test_text_that_spells_a_special_token_is_not_used(made, text: str, target: str) -> None:
    task, _, _ = made("llama")
    with pytest.raises(Unusable, match="special_token_in_text"):
        task.encode(row(text, target))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_texts_and_likelihoods_do_not_depend_on_the_batch(made, family: str, num_beams: int) -> None:
    """Case A16 beside it: nats are summed over tokens, so batches of one and of all give one perplexity."""
    task, model, _ = made(family, max_target_length=7, num_beams=num_beams)
    alone, _ = predict_rows(model, task, SENTENCES, 1)
    together, _ = predict_rows(model, task, SENTENCES, 3)
    assert [p["text"] for ps in alone.values() for p in ps] == [p["text"] for ps in together.values() for p in ps]
    assert any(p["text"] for ps in alone.values() for p in ps)
    first, second = (answer_perplexity(found, Bootstrap(replicates=20)) for found in (alone, together))
    assert first.value == pytest.approx(second.value, rel=1e-12)
    numbers = [(p["nats"], p["num_targets"]) for ps in alone.values() for p in ps]
    assert [count for _, count in numbers] == [3, 2, 6]
    assert first.value == pytest.approx(math.exp(sum(n for n, _ in numbers) / 11), rel=1e-12)
    assert first.value != pytest.approx(math.exp(sum(n / c for n, c in numbers) / 3), rel=1e-3)


def test_text_ends_at_the_first_end_token(made) -> None:
    task, _, tokenizer = made("t5")
    cat, dog = tokenizer.convert_tokens_to_ids(["cat", "dog"])
    assert task.text_of([cat, END, dog, END]) == "cat"
    assert task.text_of([END, PAD]) == ""


def test_model_whose_likelihoods_are_not_finite_wrote_nothing(made) -> None:
    task, model, _ = made("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    found, _ = predict_rows(model, task, SENTENCES, 3)
    scores = task.score(SENTENCES, found, 0)
    assert scores["chrf"].n_invalid == 3
    assert scores["chrf"].value == 0.0
    assert math.isnan(scores["perplexity"].value)


def test_rows_that_could_not_be_encoded_count_as_wrong(made) -> None:
    task, _, _ = made("t5", kind="summarization")
    rows = [row("the cat runs", "cat runs", 1), row("", "big dog", 2)]
    found = {rows[0]["id"]: [{"text": "cat runs", "nats": 2.0, "num_targets": 3}], rows[1]["id"]: []}
    scores = task.score(rows, found, 0)
    assert list(scores) == ["rougeL", "rouge1", "rouge2", "chrf", "perplexity"]
    assert (scores["rougeL"].value, scores["rougeL"].n, scores["rougeL"].n_invalid) == (0.5, 2, 1)
    assert scores["perplexity"].value == pytest.approx(math.exp(2 / 3))


def test_language_decides_how_bleu_tells_words_apart(made) -> None:
    rows = [row("big", "\u6211\u5f88\u559c\u6b22\u732b\u548c\u72d7", 1)]
    found = {rows[0]["id"]: [{"text": "\u6211\u5f88\u559c\u6b22\u732b", "nats": 1.0, "num_targets": 1}]}
    scores = {code: made("t5", language=code)[0].score(rows, found, 0) for code in ("en", "zh")}
    assert next(iter(scores["zh"])) == "chrf"
    assert scores["en"]["bleu"].value == 0.0
    assert scores["zh"]["bleu"].value > 50


METHODS = [("t5", kind) for kind in ("lora", "ia3", "prefix", "prompt")]
METHODS += [("llama", kind) for kind in ("lora", "ia3", "prefix", "prompt", "adapter")]


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:Position ids are not supported"
)  # peft on transformers 5.24
@pytest.mark.parametrize(("family", "method"), METHODS)
def test_writing_under_a_method_takes_the_likeliest_token_of_a_whole_pass_at_each_step(
    made, family: str, method: str
) -> None:
    """The oracle is a pass over prompt and answer as in training, one example at a time. `generate` of peft is none: it
    leaves a learned prefix out."""
    task, model, _ = made(family, max_target_length=5)
    plain = [p["text"] for ps in predict_rows(model, task, SENTENCES, 3)[0].values() for p in ps]
    wrapped: Any = apply_method(model.float(), MethodSpec(kind=method, num_virtual_tokens=3), task.peft_type).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 2)
    written, _ = predict_rows(wrapped, task, SENTENCES, 3)
    expected = [task.text_of(task.stepwise(wrapped, task.collate(task.encode(one)))[0]) for one in SENTENCES]
    found = [written[one["id"]][0]["text"] for one in SENTENCES]
    assert found == expected
    assert found != plain  # the method has a say
    inputs = task.collate(examples_of(task))
    loss = float(task.loss(wrapped(**inputs.model), inputs).detach())
    assert sum(p["nats"] for ps in written.values() for p in ps) == pytest.approx(loss, rel=1e-5)


def test_beams_of_a_learned_prompt_are_refused(made) -> None:
    task, model, _ = made("llama", num_beams=2)
    wrapped = apply_method(model.float(), MethodSpec(kind="prefix", num_virtual_tokens=3), task.peft_type).eval()
    with pytest.raises(RequestError, match="set it to 1"):
        predict_rows(wrapped, task, SENTENCES, 3)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        (BertConfig(architectures=["BertForMaskedLM"]), RequestError, "does not go on from a prompt"),
        (T5Config(architectures=["T5ForConditionalGeneration"]), DataError, "decoder_start_token_id"),
    ],
)
def test_base_that_cannot_write_is_refused(make_tokenizer, config: Any, error: type[Exception], said: str) -> None:
    if config.is_encoder_decoder:
        config.decoder_start_token_id = None
    with pytest.raises(error, match=said):
        make_task(TaskSpec(kind="summarization"), make_tokenizer(), (), config)


def test_prompt_without_a_place_for_the_text_is_refused(made) -> None:
    with pytest.raises(RequestError, match=r"no \{text\}"):
        made("llama", prompt="translate this")


def test_tokenizer_without_an_end_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer(wrapped=False)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        make_task(TaskSpec(kind="translation"), tokenizer, (), LlamaConfig(architectures=["LlamaForCausalLM"]))


def reversals() -> list[dict[str, Any]]:
    """Words in the other order; what is asked at the end was never seen."""
    texts = [" ".join(words) for words in permutations(NOUNS, 3)]
    return [
        {"text": text, "target": " ".join(reversed(text.split())), "split": "test" if number % 8 == 0 else "train"}
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(("family", "epochs"), [("t5", 40), ("llama", 40)])
def test_writing_learns_to_reverse_words_and_the_exported_folder_does_it(
    workspace, request, family: str, epochs: int
) -> None:
    """Whole path in child processes; two rows cannot be used and are counted."""
    rows = [*reversals(), {"text": " ", "target": "cat"}, {"text": "cat </s>", "target": "cat"}]
    labelled, base = workspace.labelled("translation", rows), request.getfixturevalue(family)
    task = {"kind": "translation", "max_length": 12, "max_target_length": 6}
    checkpoint = workspace.finetune(labelled, base, FAST | {"task": task, "epochs": epochs})
    counts = checkpoint.counts
    assert counts["reject.empty_text"] + counts["reject.special_token_in_text"] == 2
    assert counts["in"] == counts["out"] + 2
    model = workspace.export(checkpoint, base, labelled)
    card = workspace.score(model, labelled, {"task": task})
    assert (card.metric, card.num_rows) == ("chrf", 42)
    assert card.value > 95
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert scores["perplexity"]["value"] < 1.2
    settings = GenerationConfig.from_pretrained(model.folder())
    assert (settings.eos_token_id, settings.max_new_tokens) == ([END], 6)
    if family == "t5":
        plain, tokenizer = (
            AutoModelForSeq2SeqLM.from_pretrained(model.folder()),
            AutoTokenizer.from_pretrained(model.folder()),
        )
        ids = plain.generate(**tokenizer("moon red dog", return_tensors="pt"))
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == "dog red moon"
