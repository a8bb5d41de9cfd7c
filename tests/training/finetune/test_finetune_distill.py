"""A smaller model that learns a task from a larger one: what it takes over, what is refused, ranks, what is published."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from spark_jobs.errors import DataError, RequestError
from training.distill.layers import install_hidden
from training.distill.loss import DistilledLoss, maps_of
from training.distill.tasks import task_divergence
from training.distill_spec import DistillSpec
from training.finetune.compare import compare
from training.finetune.task import TaskInputs
from training.finetune_spec import ScoreTaskSpec
from training.parallel_spec import ParallelSpec
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.parallel import parallelize

FAST: dict[str, Any] = {
    "epochs": 8, "sequences_per_step": 8, "micro_batch": 4, "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.0},
    "schedule": {"kind": "constant", "warmup_share": 0.0}, "dropout": 0.0,
}  # fmt: skip


def rows(flipped: bool = False) -> list[dict[str, Any]]:
    """Sentences whose class is their colour; flipped: labels say the other one."""
    other = {"red": "blue", "blue": "red"}
    return [
        {"text": f"the {size} {colour} {noun}", "labels": [other[colour] if flipped else colour], "split": split}
        for colour in ("red", "blue")
        for size, split in (("small", "train"), ("one", "train"), ("big", "test"))
        for noun in ("cat", "dog", "sun", "moon")
    ]


def small(workspace: Any, make_tokenizer: Any, hidden_size: int = 16) -> Any:
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return workspace.model(BertModel(config), tokenizer)


def distilled(workspace: Any, labelled: Any, base: Any, teacher: Any, spec: dict[str, Any]) -> Any:
    from training.finetune.main import run
    from training.finetune_spec import FinetuneSpec
    from training.manifests import TaskCheckpoint

    whole = FinetuneSpec.model_validate(FAST | spec).model_dump(mode="json")
    inputs = {"labelled": labelled, "base": base, "teacher": teacher}
    return workspace._job(run, TaskCheckpoint, "finetune", whole, inputs)


def test_student_believes_a_teacher_against_its_labels_and_is_published_without_the_maps(
    workspace, bert, make_tokenizer
) -> None:
    truth = workspace.labelled("classification", rows(), ["red", "blue"])
    lies = workspace.labelled("classification", rows(flipped=True), ["red", "blue"])
    teacher = workspace.trained(truth, bert, FAST)
    base = small(workspace, make_tokenizer)
    spec = {"distill": {"alpha": 1.0, "hidden": {"weight": 0.1}}, "epochs": 16}
    checkpoint = distilled(workspace, lies, base, teacher, spec)
    with safe_open(Path(checkpoint.folder()) / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "training_only" in name]  # noqa: SIM118 no dict
    student = workspace.export(checkpoint, base, lies)
    assert student.num_parameters < teacher.num_parameters / 2
    assert workspace.score(student, truth, {}).value == 1.0
    loaded = AutoModelForSequenceClassification.from_pretrained(student.folder())
    assert not loaded.config.output_hidden_states


def test_teacher_of_other_labels_or_tokens_is_refused_by_name(workspace, bert, make_tokenizer) -> None:
    labelled = workspace.labelled("classification", rows(), ["red", "blue"])
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0, id2label={0: "good", 1: "bad"},
    )  # fmt: skip
    stranger = workspace.model(BertForSequenceClassification(config), tokenizer)
    with pytest.raises(RequestError, match=r"tells apart good, bad; labelled set .* asks for blue, red"):
        distilled(workspace, labelled, bert, stranger, {"distill": {}})
    config.id2label, config.label2id = {0: "blue", 1: "red"}, {"blue": 0, "red": 1}
    tokenizer.add_tokens(["zebra"])
    model = BertForSequenceClassification(config)
    model.resize_token_embeddings(len(tokenizer))
    with pytest.raises(RequestError, match="read other tokens: 47 and 46, of which 1 differ, for example 'zebra'"):
        distilled(workspace, labelled, bert, workspace.model(model, tokenizer), {"distill": {}})


def test_teacher_that_nobody_asks_is_refused(workspace, bert) -> None:
    labelled = workspace.labelled("classification", rows(), ["red", "blue"])
    with pytest.raises(RequestError, match="input 'teacher' that it does not ask"):
        distilled(workspace, labelled, bert, bert, {})


def gradients(ranks: Ranks, strategy: str) -> dict[str, Any]:
    """Of one step with answers and layers of a wider teacher, over all ranks' texts, by parameter."""
    sizes = {"vocab_size": 20, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    torch.manual_seed(0)
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = BertForSequenceClassification(BertConfig(hidden_size=8, num_hidden_layers=2, **sizes, **plain)).double()
    teacher = BertForSequenceClassification(BertConfig(hidden_size=12, num_hidden_layers=3, **sizes)).double()
    spec = DistillSpec.model_validate({"alpha": 0.6, "hidden": {"weight": 0.5}})
    install_hidden(student, teacher, spec.hidden, seed=3)
    student.double()
    loss = DistilledLoss(
        lambda output, inputs: sum_cross_entropy(output.logits, inputs.targets_BS), teacher,
        task_divergence("classification", spec.temperature), spec, ranks.device, maps_of(student),
    )  # fmt: skip
    mesh = make_mesh(ranks, ParallelSpec(strategy=strategy).degrees(ranks.world_size))
    shared = parallelize(student, mesh, ParallelSpec(strategy=strategy), output_loss=loss)
    ids = torch.arange(24).reshape(4, 6) % 17 + 1
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    share = slice(ranks.rank * 4 // ranks.world_size, (ranks.rank + 1) * 4 // ranks.world_size)
    texts = [
        TaskInputs({"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]}, torch.tensor([i % 2]), (str(i),))
        for i in range(4)[share]
    ]
    total = mesh.sum_once([shared.forward_backward(texts, 4.0)])[0]
    found = {name: p.grad for name, p in shared.module.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}
    return {name: g for name, g in whole.items() if "training_only" in name or "classifier" in name} | {
        "loss": torch.tensor(total, dtype=torch.float64)
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_gradients_of_one_maps_of_layers_too(run_ranks, strategy) -> None:
    (alone,) = run_ranks(functools.partial(gradients, strategy="ddp"), 1)
    assert sum("training_only" in name for name in alone) == 2
    for found in run_ranks(functools.partial(gradients, strategy=strategy), 2):
        assert found.keys() == alone.keys()
        for name, gradient in found.items():
            assert torch.allclose(gradient, alone[name], atol=1e-12), name


def made(workspace: Any, teacher: Any, spec: dict[str, Any]) -> Any:
    from training.distill.student import run
    from training.manifests import ModelFolder

    return workspace._job(run, ModelFolder, "make-student", spec, {"teacher": teacher})


def deep(workspace: Any, make_tokenizer: Any, num_layers: int = 4) -> Any:
    tokenizer = make_tokenizer(wrapped=False)
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=num_layers, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=4,
    )  # fmt: skip
    return workspace.model(LlamaForCausalLM(config), tokenizer)


@pytest.mark.parametrize(("blocks", "kept"), [("spread", [1, 3]), ("lowest", [0, 1])])
def test_student_cut_from_a_teacher_has_its_blocks_under_new_numbers(workspace, make_tokenizer, blocks, kept) -> None:
    teacher = deep(workspace, make_tokenizer)
    student = made(workspace, teacher, {"cut": {"num_layers": 2, "blocks": blocks}})
    ours, theirs = (load_file(Path(folder.folder()) / "model.safetensors") for folder in (student, teacher))
    for place, block in enumerate(kept):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(ours[name.format(place)], theirs[name.format(block)])
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    loaded = LlamaForCausalLM.from_pretrained(student.folder())
    assert loaded.config.num_hidden_layers == 2
    assert loaded(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 46)
    assert (Path(student.folder()) / "tokenizer.json").is_file()


def test_student_with_all_blocks_is_the_teacher(workspace, make_tokenizer) -> None:
    teacher = deep(workspace, make_tokenizer, 3)
    student = made(workspace, teacher, {"cut": {"num_layers": 3}})
    ours, theirs = (load_file(Path(folder.folder()) / "model.safetensors") for folder in (student, teacher))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_student_of_more_blocks_than_its_teacher_is_refused(workspace, make_tokenizer) -> None:
    with pytest.raises(RequestError, match=r"num_layers 9: teacher models/.* has 4 blocks"):
        made(workspace, deep(workspace, make_tokenizer), {"cut": {"num_layers": 9}})


def test_new_student_of_another_architecture_has_the_teachers_vocabulary_and_a_seed(workspace, bert) -> None:
    shape = {"architecture": "distilbert", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    students = [made(workspace, bert, {"new": shape, "seed": seed}) for seed in (0, 0, 1)]
    first, again, other = (load_file(Path(s.folder()) / "model.safetensors") for s in students)
    assert first["embeddings.word_embeddings.weight"].shape == (46, 16)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])


def spec_of(kind: str) -> ScoreTaskSpec:
    return ScoreTaskSpec.model_validate({"task": {"kind": kind}})


def test_difference_is_paired_and_a_row_without_an_answer_is_wrong() -> None:
    truth = [{"id": str(number), "labels": ["red"]} for number in range(40)]
    right, wrong = [{"label": "red"}], [{"label": "blue"}]
    theirs = {row["id"]: right if int(row["id"]) < 20 else wrong for row in truth}
    ours = theirs | {"20": right, "21": right, "22": right, "0": []}
    found = compare(truth, ours, theirs, spec_of("classification"))
    assert found["difference"] == pytest.approx(2 / 40)
    assert found["low"] < 2 / 40 < found["high"]
    assert found["mcnemar_p"] == pytest.approx(0.625)  # 3 against 1: 2 (1 + 4) / 16
    assert compare(truth, theirs, theirs, spec_of("classification"))["high"] == 0.0


def test_labels_are_compared_by_micro_f1_of_all_rows() -> None:
    truth = [{"id": "a", "labels": ["red", "big"]}, {"id": "b", "labels": []}]
    ours = {"a": [{"labels": ["big", "red"]}], "b": [{"labels": []}]}
    theirs = {"a": [{"labels": ["red"]}], "b": [{"labels": ["red"]}]}
    found = compare(truth, ours, theirs, spec_of("multi_label"))
    assert found["difference"] == pytest.approx(1.0 - 0.5)  # 2 x 1 found and wanted, of 2 found and 2 wanted
    assert found["mcnemar_p"] is None


def test_models_scored_on_other_rows_are_not_compared() -> None:
    with pytest.raises(DataError, match="score both models on one split"):
        compare([{"id": "a", "labels": ["red"]}], {"a": []}, {}, spec_of("classification"))
