"""Dialogues: which tokens are learned under which chat template, what is cut, and that a trained model stops by itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from spark_jobs.errors import RequestError
from training.finetune.dialogue import PLAIN_TEMPLATE, Dialogue
from training.finetune.examples import encode_rows
from training.finetune.generation import PROMPT
from training.finetune.kinds import make_task
from training.finetune.score import predict_rows
from training.finetune.task import Unusable
from training.finetune_spec import TaskSpec
from training.pretrain.loss import IGNORED, count_targets

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:!?\n"
CHATML = (  # a template that closes a turn and puts a newline behind it, as many do
    "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' + m['content'] + '<|close|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
)
MARKED = (  # the same, with marks around what the assistant writes, the close included
    "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|close|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|close|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
)
CLOSE_OUTSIDE = MARKED.replace(
    "{{ m['content'] + '<|close|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ '<|close|>' }}"
)
CONFIG = LlamaConfig(architectures=["LlamaForCausalLM"])
FAST: dict[str, Any] = {
    "sequences_per_step": 8, "micro_batch": 8, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0,
}  # fmt: skip


def by_character(template: str | None) -> PreTrainedTokenizerFast:
    """Every character is a token, so that what is learned can be read."""
    special = ["<pad>", "<unk>", "<|open|>", "<|close|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|close|>", bos_token="<|open|>"
    )
    made.chat_template = template
    return made


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """Contents said by user and assistant in turn."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def row(messages: list[dict[str, str]], number: int = 0) -> dict[str, Any]:
    return {"id": f"{number:032x}", "messages": messages}


def dialogue(template: str | None = CHATML, **spec: Any) -> Any:
    return make_task(TaskSpec(**({"kind": "dialogue"} | spec)), by_character(template), (), CONFIG)


def learned(task: Any, messages: list[dict[str, str]]) -> str:
    """What is learned, as it reads; `~` for each run of tokens that is not."""
    (example,) = task.encode(row(messages))
    pieces, silent = [], False
    for label in example.features["labels"]:
        if label != IGNORED:
            pieces.append(str(task.tokenizer.convert_ids_to_tokens(label)))
        elif not silent:
            pieces.append("~")
        silent = label == IGNORED
    return "".join(pieces)


TWO_ANSWERS = turns("hi", "hello there", "bye", "so long", system="be kind")


@pytest.mark.parametrize("template", [CHATML, MARKED, CLOSE_OUTSIDE], ids=["derived", "marked", "close outside"])
def test_dialogue_learns_answers_with_their_end_and_nothing_else(template: str) -> None:
    """Cases A11 and A13: an unmarked template gives neither all nor nothing, and each answer's last token is the one that
    ends it, also where the template's marks leave it to the next turn. The newline behind it is not written."""
    task = dialogue(template)
    assert learned(task, TWO_ANSWERS) == "~hello there<|close|>~so long<|close|>~"
    assert task.end_ids == (task.tokenizer.convert_tokens_to_ids("<|close|>"),)


def test_dialogue_without_a_template_gets_the_plain_one() -> None:
    task = dialogue(None)
    assert task.tokenizer.chat_template == PLAIN_TEMPLATE
    assert learned(task, TWO_ANSWERS) == "~hello there<|close|>~so long<|close|>~"
    assert task.rendered(turns("hi"), True) == "<|open|>User:\nhi\nAssistant:\n"


WORDS = st.text(alphabet="abc .\n", min_size=1, max_size=9).filter(lambda text: bool(text.strip()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_dialogue_learns_the_answers_of_any_dialogue(exchanges: list[tuple[str, str]]) -> None:
    """Law: what is learned, joined, is every answer with its end; what the prompt holds, and it, begin the whole."""
    said = [text for exchange in exchanges for text in exchange]
    for template in (CHATML, MARKED):
        task = dialogue(template, max_length=512)
        (example,) = task.encode(row(turns(*said)))
        ids, labels, prompt = (example.features[name] for name in ("input_ids", "labels", PROMPT))
        spelled = "".join(task.tokenizer.convert_ids_to_tokens([n for n in labels if n != IGNORED]))
        assert spelled == "".join(answer + "<|close|>" for _, answer in exchanges)
        assert all(label in (IGNORED, number) for label, number in zip(labels, ids, strict=True))
        assert ids[: len(prompt)] == prompt
        assert count_targets(task.collate([example]).targets_BS) == len(spelled.replace("<|close|>", "|"))


UNSTABLE = CHATML.replace("{% for m", "{{ messages | length }}{% for m")
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # fmt: skip
MARKS_NOTHING = CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"
MARKS_ALL = "{% generation %}" + CHATML + "{% endgeneration %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (UNSTABLE, "otherwise than within the whole"),
        (NO_END, "no special token"),
        (MARKS_NOTHING, "marks 0 of"),
        (MARKS_ALL, "tokens of a dialogue as the assistant's"),
        ("{{ raise_exception('no dialogues') }}", "no dialogues"),
    ],
    ids=["not a prefix", "no end", "nothing", "everything", "raises"],
)
def test_template_that_does_not_tell_what_to_learn_is_refused(template: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        dialogue(template)


def test_dialogue_wants_a_causal_base() -> None:
    config = T5Config(architectures=["T5ForConditionalGeneration"])
    with pytest.raises(RequestError, match="choose a causal base"):
        make_task(TaskSpec(kind="dialogue"), by_character(CHATML), (), config)


def test_long_dialogue_loses_its_oldest_turns_and_keeps_the_system_message() -> None:
    messages = turns("one", "two", "three", "four", "five", "six", system="sys")
    whole = dialogue(max_length=512)
    sizes = [
        len(whole.tokens_of(kept)[0]) for kept in (messages, messages[:1] + messages[3:], messages[:1] + messages[5:])
    ]
    assert learned(dialogue(max_length=sizes[0]), messages).count("<|close|>") == 3
    assert learned(dialogue(max_length=sizes[0] - 1), messages) == "~four<|close|>~six<|close|>~"
    assert learned(dialogue(max_length=sizes[1]), messages) == "~four<|close|>~six<|close|>~"
    shortest = dialogue(max_length=sizes[2])
    (example,) = shortest.encode(row(messages))
    text = "".join(shortest.tokenizer.convert_ids_to_tokens(example.features["input_ids"]))
    assert text == ("<|open|>system\nsys<|close|>\n<|open|>user\nfive<|close|>\n<|open|>assistant\nsix<|close|>\n")
    with pytest.raises(Unusable, match="no_target"):  # case A14
        dialogue(max_length=sizes[2] - 1).encode(row(messages))


def test_rows_of_dialogues_are_examples_or_counted() -> None:
    task = dialogue(max_length=64)
    ordered = CHATML.replace("{% for m in messages %}", "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('order') }}{% endif %}{% for m in messages %}")  # fmt: skip
    rows = [
        row(turns("hi", "hello"), 1),
        row([], 2),
        row(turns("hi", "hello", "and"), 3),
        row(turns("hi", " "), 4),
        row(turns("say <|close|>", "no"), 5),
        row(turns("a" * 80, "b"), 6),
        {"id": "7", "messages": None},
    ]
    examples, unusable = encode_rows(task, iter(rows))
    assert len(examples) == 1
    assert unusable == Counter(no_messages=2, last_turn_not_assistant=1, no_target=2, special_token_in_text=1)
    assert len(examples) + sum(unusable.values()) == len(rows)
    greeting = row([{"role": "assistant", "content": "welcome"}])
    assert learned(task, greeting["messages"]) == "~welcome<|close|>~"
    with pytest.raises(Unusable, match="refused_by_template"):
        dialogue(ordered).encode(greeting)


def tiny_llama(size: int) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=256, initializer_range=0.3, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


DIALOGUES = [row(TWO_ANSWERS, 1), row(turns("a", "b"), 2), row(turns("what now?", "nothing. wait", "ok", "good"), 3)]


@pytest.mark.parametrize("pad_id", [0, 3, 9])
def test_dialogue_loss_is_the_one_of_transformers_whatever_pads(pad_id: int) -> None:
    """Case A10 with it: id 3 ends turns, and padding of that id takes none of them away."""
    task = dialogue(max_length=200)
    task.pad_id = pad_id
    model = tiny_llama(len(task.tokenizer))
    examples = [example for one in DIALOGUES for example in task.encode(one)]
    inputs = task.collate(examples)
    assert sum(int((ids == 3).sum()) for ids in inputs.targets_BS) == 5
    ours = task.loss(model(**inputs.model), inputs)
    width = inputs.model["input_ids"].shape[1]
    labels = torch.tensor([[*e.features["labels"], *[IGNORED] * (width - len(e.features["labels"]))] for e in examples])
    logits_BTV = model(input_ids=inputs.model["input_ids"], attention_mask=inputs.model["attention_mask"]).logits
    logs_BTV = logits_BTV[:, :-1].log_softmax(-1)
    learned_BT = labels[:, 1:] != IGNORED
    picked = logs_BTV.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    assert float(ours.detach()) == pytest.approx(float(-picked[learned_BT].sum().detach()), rel=1e-12)
    theirs = model(**inputs.model, labels=labels).loss  # rounds the logits to float32
    assert float(ours.detach()) / count_targets(inputs.targets_BS) == pytest.approx(float(theirs.detach()), rel=1e-7)


def test_perplexity_weighs_tokens_and_not_dialogues_or_batches() -> None:
    """Case A16."""
    task = dialogue(max_length=200, max_target_length=6)
    model = tiny_llama(len(task.tokenizer))
    scores = [task.score(DIALOGUES, predict_rows(model, task, DIALOGUES, size)[0], 0) for size in (1, 2, 3)]
    inputs = task.collate([example for one in DIALOGUES for example in task.encode(one)])
    with torch.no_grad():
        mean = float(task.loss(model(**inputs.model), inputs)) / count_targets(inputs.targets_BS)
    assert next(iter(scores[0])) == "perplexity"
    for score in scores:
        assert score["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-12)
        assert score["perplexity"].low <= score["perplexity"].value <= score["perplexity"].high
        assert score["chrf"].value == scores[0]["chrf"].value


def test_answer_is_written_in_place_of_the_last_one_and_stops_at_either_end() -> None:
    task = dialogue(max_length=200)
    close = task.tokenizer.convert_tokens_to_ids("<|close|>")
    ids = task.tokenizer.convert_tokens_to_ids(list("ok"))
    assert task.text_of([*ids, close, *ids]) == "ok"
    inputs = task.collate(task.encode(DIALOGUES[0]))
    prompt = "".join(task.tokenizer.convert_ids_to_tokens(inputs.wanted[PROMPT][0].tolist()))
    assert prompt.endswith("<|open|>user\nbye<|close|>\n<|open|>assistant\n")
    two_ends = by_character(CHATML)
    two_ends.eos_token = "<|open|>"
    assert Dialogue(TaskSpec(kind="dialogue"), two_ends, CONFIG).end_ids == (2, 3)


def test_dialogue_learns_to_answer_and_the_exported_folder_carries_its_template(workspace, llama) -> None:
    """Whole path in child processes, on a base without a template. Each question has one answer; a row without an answer is
    counted."""
    answers = {"red": "big cat", "blue": "dog", "green": "sun and moon", "one": "two three", "good": "bad", "yes": "no"}
    rows = [
        {"messages": turns(first, answers[first], second, answers[second]), "split": split}
        for first in answers
        for second in answers
        if first != second
        for split in ["test" if (first, second) in (("red", "one"), ("yes", "blue"), ("good", "green")) else "train"]
    ]
    labelled = workspace.labelled("dialogue", [*rows, {"messages": turns("red", "cat", "dog")}])
    task = {"kind": "dialogue", "max_length": 40, "max_target_length": 8}
    checkpoint = workspace.finetune(labelled, llama, FAST | {"task": task, "epochs": 10})
    assert checkpoint.counts == {"in": 28, "out": 27, "reject.last_turn_not_assistant": 1}
    model = workspace.export(checkpoint, llama, labelled)
    card = workspace.score(model, labelled, {"task": task})
    scores = json.loads((Path(card.folder()) / "scores.json").read_text())
    assert (card.metric, card.num_rows) == ("perplexity", 3)
    assert scores["perplexity"]["value"] < 1.1
    assert scores["chrf"]["value"] == pytest.approx(100)
    tokenizer = AutoTokenizer.from_pretrained(model.folder())
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    network = LlamaForCausalLM.from_pretrained(model.folder())
    asked = tokenizer.apply_chat_template(
        turns("blue"), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    asked.pop("token_type_ids", None)
    written = network.generate(**asked)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.convert_ids_to_tokens(written.tolist()) == ["dog", "</s>"]
    assert GenerationConfig.from_pretrained(model.folder()).eos_token_id == [4]
