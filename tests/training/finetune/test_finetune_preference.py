"""DPO: the first loss, what it is of, the reference, ranks, a model that learns to prefer, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.parity import on_ranks
from training.finetune.base import load_base
from training.finetune.main import make_task_of
from training.finetune.preference import Preference
from training.finetune.task import Unusable
from training.finetune_spec import FinetuneSpec, TaskSpec
from training.pretrain.loss import IGNORED
from training.pretrain.mesh import Ranks

CPU = torch.device("cpu")
TASK = {"kind": "preference", "beta": 0.5, "max_length": 40}
FAST: dict[str, Any] = {
    "epochs": 12, "ranks": 1, "sequences_per_step": 6, "micro_batch": 3, "optimizer": {"learning_rate": 5e-3, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "task": TASK,
}  # fmt: skip


def row(**fields: Any) -> dict[str, Any]:
    return {"id": "0" * 32, "text": "what runs ?", "messages": None, "chosen": "the cat", "rejected": "a dog"} | fields


def rows() -> list[dict[str, Any]]:
    """Of lengths that differ; good is preferred to bad."""
    return [
        row(id=f"{i:032x}", text=f"what {verb} ?", chosen=f"good {noun}", rejected=f"bad {noun} and {noun}")
        for i, (verb, noun) in enumerate(
            (v, n) for v in ("runs", "sleeps", "sees") for n in ("cat", "dog", "sun and moon", "the moon")
        )
    ]


@pytest.fixture
def task(make_tokenizer) -> Preference:
    config = LlamaConfig(architectures=["LlamaForCausalLM"])
    return Preference(TaskSpec.model_validate(TASK), make_tokenizer(wrapped=False), config)


@pytest.fixture
def model(llama) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama.folder()).double()


def test_loss_of_the_model_that_is_its_own_reference_is_log_2_a_pair(task, model) -> None:
    examples = task.prepare(model, [e for r in rows() for e in task.encode(r)], CPU)
    inputs = task.collate(examples)
    assert inputs.targets_BS.numel() == len(examples) == 12
    loss = task.loss(model(**inputs.model), inputs)
    assert loss.item() / 12 == pytest.approx(math.log(2), abs=1e-12)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), "but it has a slope"


def test_loss_is_that_of_the_paper_with_probabilities_pair_by_pair(task, model) -> None:
    """Each answer in a batch of its own, its tokens' probabilities one by one."""
    examples = task.prepare(model, [e for r in rows() for e in task.encode(r)], CPU)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.02)
        expected = 0.0
        for example in examples:
            gained = []
            for side, reference in zip(("chosen", "rejected"), example.features["reference"], strict=True):
                ids, labels = example.features[side], example.features[f"{side}_labels"]
                logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                gained.append(sum(float(logs[i - 1, ids[i]]) for i, label in enumerate(labels) if label != IGNORED) - reference)  # fmt: skip
            expected -= float(F.logsigmoid(torch.tensor(0.5 * (gained[0] - gained[1]), dtype=torch.float64)))
        inputs = task.collate(examples)
        assert float(task.loss(model(**inputs.model), inputs)) == pytest.approx(expected, abs=1e-10)


def test_learned_are_the_tokens_of_the_last_answer_and_its_end(task) -> None:
    messages = [
        {"role": "user", "content": "what runs ?"}, {"role": "assistant", "content": "the sun"},
        {"role": "user", "content": "who sleeps ?"},
    ]  # fmt: skip
    (example,) = task.encode(row(text=None, messages=messages))
    words = task.tokenizer.convert_ids_to_tokens([t for t in example.features["chosen_labels"] if t != IGNORED])
    assert words == ["the", "cat", "</s>"]
    words = task.tokenizer.convert_ids_to_tokens([t for t in example.features["rejected_labels"] if t != IGNORED])
    assert words == ["a", "dog", "</s>"]


def test_both_answers_stand_after_the_same_turns_when_old_ones_are_cut(make_tokenizer) -> None:
    config = LlamaConfig(architectures=["LlamaForCausalLM"])
    task = Preference(TaskSpec(kind="preference", max_length=24), make_tokenizer(wrapped=False), config)
    turns = [{"role": r, "content": "one two three"} for r in ("user", "assistant", "user", "assistant", "user")]
    (example,) = task.encode(row(messages=turns, chosen="the cat", rejected="a dog and a cat and a dog"))
    chosen, rejected = (example.features[f"{side}_labels"] for side in ("chosen", "rejected"))
    starts = [next(i for i, t in enumerate(labels) if t != IGNORED) for labels in (chosen, rejected)]
    assert starts[0] == starts[1]
    assert example.features["chosen"][: starts[0]] == example.features["rejected"][: starts[0]]
    with pytest.raises(Unusable, match="no_target"):
        task.encode(row(text="the cat " * 20))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": " "}, "empty_text"),
        ({"text": None}, "empty_text"),
        ({"chosen": ""}, "no_target"),
        ({"rejected": None}, "no_target"),
        ({"rejected": "the cat "}, "same_answers"),
        ({"messages": [{"role": "assistant", "content": "the cat"}]}, "last_turn_is_assistant"),
        ({"chosen": "the </s> cat"}, "special_token_in_text"),
    ],
)
def test_row_that_prefers_nothing_is_named(task, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        task.encode(row(**fields))


def test_reference_does_not_depend_on_ranks_and_has_no_dropout(task, llama) -> None:
    def ask(ranks: Ranks) -> list[tuple[float, float]]:
        model = AutoModelForCausalLM.from_pretrained(llama.folder(), attention_dropout=0.5).train()
        examples = task.prepare(model, [e for r in rows() for e in task.encode(r)], CPU)
        return [example.features["reference"] for example in examples]

    (alone,) = on_ranks(ask, 1)
    for rank in on_ranks(ask, 2):
        assert rank == alone


def test_model_has_no_dropout_unless_the_spec_says_so(workspace, llama) -> None:
    labelled = workspace.labelled("preference", rows())
    spec = FinetuneSpec.model_validate({"task": TASK})
    made = make_task_of(spec.task, labelled, llama)
    assert load_base(llama, made, spec).config.attention_dropout == 0.0
    assert load_base(llama, made, spec.model_copy(update={"dropout": 0.2})).config.attention_dropout == 0.2


def test_scores_are_of_rewards_where_the_base_was_asked(task) -> None:
    """By likelihood the first pair is lost; measured from the base, which disliked it more, it is won."""
    asked = {
        "a": [{"chosen": -9.0, "rejected": -8.0, "reference": (-12.0, -8.0)}],
        "b": [{"chosen": -3.0, "rejected": -1.0, "reference": (-3.0, -2.0)}],
    }
    pairs = [row(id="a"), row(id="b")]
    scores = task.score(pairs, asked, 0)
    assert (scores["pairwise_accuracy"].value, scores["margin"].value) == (0.5, pytest.approx(0.5 * (3.0 - 1.0) / 2))
    assert scores["margin"].signature.startswith("by:reward|beta:0.5")
    alone = {name: [one | {"reference": None} for one in found] for name, found in asked.items()}
    scores = task.score(pairs, alone, 0)
    assert (scores["pairwise_accuracy"].value, scores["margin"].value) == (0.0, -1.5)
    assert scores["pairwise_accuracy"].signature.startswith("by:likelihood")
    assert task.score(pairs, asked | {"b": []}, 0)["pairwise_accuracy"].n_invalid == 1


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_answers_are_preferred_after_training(workspace, llama, method: str) -> None:
    labelled = workspace.labelled("preference", rows() + [r | {"id": r["id"][::-1], "split": "test"} for r in rows()])
    rate = {"full": 5e-3, "lora": 2e-2, "prefix": 5e-2}[method]
    spec = FAST | {"method": {"kind": method}, "optimizer": {"learning_rate": rate, "weight_decay": 0.0}}
    checkpoint = workspace.finetune(labelled, llama, spec)
    curve = [json.loads(line) for line in (Path(checkpoint.folder()) / "curve.jsonl").read_text().splitlines()]
    if method != "prefix":  # its tokens change what the model answers from the start
        assert curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert curve[-1]["loss"] < 0.5
    model = workspace.export(checkpoint, llama, labelled)
    card = workspace.score(model, labelled, {"task": TASK})
    assert card.metric == "pairwise_accuracy"
    assert card.value == 1.0


def test_pairs_held_out_are_compared_with_the_base_too(workspace, llama) -> None:
    held = [r | {"id": r["id"][::-1], "split": "validation"} for r in rows()]
    spec = FAST | {"epochs": 2, "early_stop": {"watch": "heldout", "every": 1, "patience": 9}}
    checkpoint = workspace.finetune(workspace.labelled("preference", rows() + held), llama, spec)
    curve = [json.loads(line) for line in (Path(checkpoint.folder()) / "curve.jsonl").read_text().splitlines()]
    losses = [one["heldout_loss"] for one in curve]
    assert losses[0] < math.log(2)
    assert losses == sorted(losses, reverse=True), "the same pairs as those trained on"
