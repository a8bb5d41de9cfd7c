"""Every method on a tiny BERT and a tiny Llama: what is trained, what it is at first, merged, saved, resumed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from benchmarks.parity import on_ranks
from spark_jobs.errors import RequestError
from spark_jobs.manifests import MANIFEST, LabelledSet
from spark_jobs.requests import Request
from training.finetune.adalora import RankSchedule, check_steps, orthogonality, with_penalty
from training.finetune.main import train
from training.finetune.methods import HEADS, MERGED, apply_method, linear_layers, num_trainable, quantization_of
from training.finetune.task import TaskInputs
from training.finetune_spec import FinetuneSpec, MethodSpec
from training.manifests import ModelFolder, TaskCheckpoint
from training.model_folder import load_model
from training.pretrain.loss import sum_cross_entropy

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip
IDS = torch.arange(1, 25).view(3, 8)
# What each method adds, by a part of the name; the head of the task is always trained.
ADDED = {
    "lora": ("lora_A", "lora_B"),
    "adalora": ("lora_A", "lora_B", "lora_E"),
    "ia3": ("ia3_l",),
    "prefix": ("prompt_encoder",),
    "prompt": ("prompt_encoder",),
    "adapter": ("adaption_",),
}
CASES = [("lora", "bert"), ("lora", "llama"), ("adalora", "bert"), ("adalora", "llama"), ("ia3", "bert"), ("ia3", "llama"),
         ("prompt", "bert")]  # fmt: skip


def tiny(family: str) -> Any:
    torch.manual_seed(1)
    if family == "bert":
        config = BertConfig(**SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return BertForSequenceClassification(config)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES))


def wrap(model: Any, kind: str, **fields: Any) -> Any:
    method = MethodSpec.model_validate({"kind": kind, "rank": 4, "num_virtual_tokens": 3} | fields)
    return apply_method(model, method, "SEQ_CLS", num_steps=20)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return answer


def disturb(model: nn.Module, scale: float = 0.05) -> None:
    """Trained weights as training might leave them."""
    with torch.no_grad():
        for i, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).to(p.dtype), alpha=scale)


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_only_what_the_method_adds_and_the_head_are_trained(kind: str, family: str) -> None:
    base = tiny(family)
    frozen = {id(p): (name, p.detach().clone()) for name, p in base.named_parameters()}
    model = wrap(base, kind)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    heads = [name for name in trained if any(f".{head}." in name or f"{head}.modules" in name for head in HEADS)]
    assert heads, "a new head that is not trained would answer at random"
    assert all(any(part in name for part in ADDED[kind]) for name in set(trained) - set(heads))
    assert {part for part in ADDED[kind] for name in trained if part in name} == set(ADDED[kind])
    few, total = num_trainable(model)
    assert 0 < few < total / 3
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().sum().backward()
    optimizer.step()
    for p in model.parameters():
        if id(p) in frozen and not p.requires_grad:
            assert torch.equal(p, frozen[id(p)][1]), frozen[id(p)][0]


@pytest.mark.parametrize("kind", ["prefix", "prompt", "adapter", "lora"])
def test_of_a_model_that_writes_only_what_is_added_is_trained(kind: str) -> None:
    torch.manual_seed(1)
    base = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SIZES.items() if k != "num_labels"}))
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    model: Any = apply_method(base, MethodSpec(kind=kind, num_virtual_tokens=3), "CAUSAL_LM", 20)  # type: ignore[arg-type]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(any(part in name for part in ADDED[kind]) for name, _ in trained)
    optimizer = torch.optim.SGD([p for _, p in trained], lr=0.1)
    seen = torch.ones_like(IDS)
    first = model(input_ids=IDS, attention_mask=seen).logits[:, -8:]
    first.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model(input_ids=IDS, attention_mask=seen).logits[:, -8:], first), (
        "what is trained has an effect"
    )
    left = [p for name, p in model.named_parameters() if not p.requires_grad]
    assert all(any(p.shape == other.shape and torch.equal(p, other) for other in before.values()) for p in left)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3"])
def test_update_is_exactly_nothing_at_first(kind: str, family: str) -> None:
    model = tiny(family)
    before = logits(model)
    assert torch.equal(logits(wrap(model, kind)), before)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3"])
def test_merged_weights_answer_as_the_update_beside_them(kind: str, family: str) -> None:
    model = wrap(tiny(family), kind)
    disturb(model)
    before, plain = logits(model), logits(tiny(family))
    assert (before - plain).abs().max() > 1e-3
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("lora" in name or "ia3" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)


def test_update_merged_in_bf16_is_mostly_lost_and_in_fp32_is_not() -> None:
    """diffusers#12689. Weights of size 1, an update of about 1e-3."""
    torch.manual_seed(0)
    weight = torch.randn(256, 256)

    def merge(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        config = LlamaConfig(**SIZES | {"hidden_size": 256, "num_hidden_layers": 1})
        model: Any = LlamaForSequenceClassification(config)
        layer = model.model.layers[0].self_attn.q_proj
        with torch.no_grad():
            layer.weight.copy_(weight)
        model = wrap(model.to(dtype), "lora", targets=["q_proj"])
        adapter = model.base_model.model.model.layers[0].self_attn.q_proj
        with torch.no_grad():
            adapter.lora_B["default"].weight.normal_(std=8e-3, generator=torch.Generator().manual_seed(5))
            update = adapter.get_delta_weight("default").float()
        merged = model.merge_and_unload(safe_merge=True).model.layers[0].self_attn.q_proj.weight.float()
        return merged, weight.to(dtype).float(), update

    merged, before, update = merge(torch.bfloat16)
    assert update.abs().mean() < 3e-3
    assert float((merged == before).float().mean()) > 0.5, "bf16 rounds most of it away"
    merged, before, update = merge(torch.float32)
    assert float((merged == before).float().mean()) < 1e-2
    assert (merged - before - update).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_adapter_on_an_adapter_is_refused(family: str) -> None:
    """lerobot#3459: the second hides the first. The model inside the wrapper carries it too."""
    model = wrap(tiny(family), "lora")
    disturb(model)
    before = logits(model)
    for taken in (model, model.get_base_model()):
        with pytest.raises(RequestError, match="already carries an adapter"):
            wrap(taken, "lora")
    assert torch.equal(logits(model), before)


def test_layers_whose_name_says_little_are_told_apart_by_the_one_above() -> None:
    """BERT's pooler is called dense too, and is no part of a block."""
    assert linear_layers(tiny("bert")) == ["intermediate.dense", "key", "output.dense", "query", "value"]
    wrapped = wrap(tiny("bert"), "lora")
    changed = {name.split(".lora_")[0] for name, _ in wrapped.named_parameters() if "lora_" in name}
    assert len(changed) == 2 * 6
    assert not any("pooler" in name for name in changed)


def test_gpt2_whose_matrices_lie_the_other_way_is_merged_too() -> None:
    torch.manual_seed(0)
    base = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, num_labels=3, pad_token_id=0, attn_pdrop=0.0)
    )
    model = wrap(base, "lora")
    disturb(model)
    before = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload(safe_merge=True)), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "family", "fields", "said"),
    [
        ("lora", "bert", {"targets": ["q_proj"]}, "method.kind lora does not fit a bert"),
        ("adapter", "bert", {}, "method.kind adapter is for models that write text"),
        ("prefix", "llama", {}, "method.kind prefix is for models that write text"),
        ("prompt", "llama", {}, "would take padding for it"),
    ],
)
def test_method_that_does_not_fit_the_family_is_named(kind: str, family: str, fields: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        wrap(tiny(family), kind, **fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine may have all that qlora wants")
def test_qlora_on_a_machine_without_what_it_wants_is_refused() -> None:
    with pytest.raises(RequestError, match="qlora wants a CUDA device"):
        quantization_of(MethodSpec(kind="qlora"))


@pytest.mark.parametrize("kind", ["qlora", "adalora"])
def test_method_that_cannot_be_sharded_wants_ddp(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} wants parallel.strategy ddp"):
        FinetuneSpec.model_validate({"method": {"kind": kind}, "parallel": {"strategy": "fsdp"}})


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_frozen_blocks_stay_and_the_rest_is_trained(family: str) -> None:
    model = apply_method(tiny(family), MethodSpec(frozen_layers=1), "SEQ_CLS")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all("embed" in name or ".0." in name for name in frozen)
    assert sum("embed" in name for name in frozen) >= 1
    assert not any(".1." in name for name in frozen)
    with pytest.raises(RequestError, match="the model has 2 blocks"):
        apply_method(tiny(family), MethodSpec(frozen_layers=2), "SEQ_CLS")


# AdaLoRA


def test_penalty_is_there_once_however_the_step_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum over batches divided by the step's targets: weight times the mean norm, whether in one batch or three."""
    model = wrap(tiny("bert"), "adalora")
    loss = with_penalty(lambda output, inputs: sum_cross_entropy(output.logits, inputs.targets_BS), model, 0.5)
    vectors = [(name, p) for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    by_hand = []
    for name, p in vectors:
        square = p.detach() @ p.detach().T if "lora_A" in name else p.detach().T @ p.detach()
        by_hand.append(float((square - torch.eye(6)).norm()))
    expected = sum(by_hand) / len(by_hand)
    assert orthogonality(vectors).item() == pytest.approx(expected, rel=1e-5)
    output = type("Output", (), {"logits": torch.zeros(4, 3)})()
    inputs = TaskInputs({}, torch.tensor([0, 1, -100, 2]), ())
    plain = sum_cross_entropy(output.logits, inputs.targets_BS).item()
    assert loss(output, inputs).item() == pytest.approx(plain + 0.5 * 3 * expected, rel=1e-5)
    with torch.no_grad():
        assert float(loss(output, inputs)) == plain, "held-out losses compare with those of other methods"


def test_adalora_ends_with_the_ranks_of_its_budget() -> None:
    model = wrap(tiny("bert"), "adalora")
    ranks = RankSchedule(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ranks.follow(optimizer)
    left = []
    for _ in range(20):
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        left.append(ranks.num_kept)
    layers = 12
    assert left[0] == left[1] == 6 * layers, "a tenth of the steps without pruning"
    assert left[9] == left[-1] == 4 * layers
    assert left == sorted(left, reverse=True)
    alive = sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)
    assert alive == 4 * layers, "what is pruned is exactly zero, after the optimizer's last step too"


@pytest.mark.parametrize("num_steps", [1, 9])
def test_adalora_without_steps_to_prune_in_is_refused(num_steps: int) -> None:
    with pytest.raises(RequestError, match=f"adalora over {num_steps} steps: at least 10"):
        check_steps(num_steps)


# Through the trainer

SPEC: dict[str, Any] = {
    "epochs": 3, "ranks": 1, "sequences_per_step": 6, "micro_batch": 3, "checkpoint_every": 4, "keep_checkpoints": 9,
    "optimizer": {"learning_rate": 1e-2}, "dropout": 0.1,
}  # fmt: skip


def colours(workspace: Any) -> LabelledSet:
    rows = [
        {"text": f"the {size} {colour} {noun}", "labels": [colour]}
        for colour in ("red", "blue")
        for size in ("big", "small")
        for noun in ("cat", "dog", "sun", "moon", "runs", "sees")
    ]
    made: LabelledSet = workspace.labelled("classification", rows, ["red", "blue"])
    return made


def trained(out: Path, labelled: LabelledSet, base: ModelFolder, spec: dict[str, Any], world_size: int = 1) -> Path:
    whole = FinetuneSpec.model_validate(spec | {"ranks": world_size}).model_dump(mode="json")
    request = Request(
        job="finetune",
        spec=whole,
        inputs={"labelled": labelled.uri, "base": base.uri},
        out=str(out),
        night="2026-11-26",
    )
    out.mkdir(parents=True, exist_ok=True)
    on_ranks(lambda ranks: train(request, ranks, "").model_dump(mode="json")["fields"].get("num_trainable", 0), world_size)  # fmt: skip
    return out


@pytest.mark.parametrize(("kind", "step"), [("lora", 4), ("adalora", 4), ("adalora", 8)])
def test_resumed_run_ends_with_the_bytes_of_the_unbroken_one(workspace, bert, kind: str, step: int) -> None:
    """adalora: before it has settled on its ranks, and after."""
    labelled, spec = colours(workspace), SPEC | {"method": {"kind": kind, "rank": 2}}
    unbroken = trained(workspace.root / "unbroken", labelled, bert, spec)
    kept = f"scratch/checkpoints/step-{step:08d}"
    shutil.copytree(unbroken / kept, workspace.root / "resumed" / kept)
    shutil.copyfile(unbroken / "scratch" / "curve.jsonl", workspace.root / "resumed" / "scratch" / "curve.jsonl")
    resumed = trained(workspace.root / "resumed", labelled, bert, spec)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (resumed / "data" / name).read_bytes() == (unbroken / "data" / name).read_bytes()
    curves = [[json.loads(line) for line in (run / "data" / "curve.jsonl").read_text().splitlines()] for run in (unbroken, resumed)]  # fmt: skip
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]
    assert len(curves[0]) == 12


@pytest.mark.parametrize("kind", ["fgm", "freelb"])
def test_adversarial_run_of_an_adapter_resumes_to_the_byte(workspace, bert, kind: str) -> None:
    """With dropout, whose random state a step must leave as a plain one does."""
    labelled, spec = colours(workspace), SPEC | {"method": {"kind": "lora", "rank": 2}, "adversarial": {"kind": kind}}
    unbroken = trained(workspace.root / "unbroken", labelled, bert, spec)
    kept = "scratch/checkpoints/step-00000008"
    shutil.copytree(unbroken / kept, workspace.root / "resumed" / kept)
    shutil.copyfile(unbroken / "scratch" / "curve.jsonl", workspace.root / "resumed" / "scratch" / "curve.jsonl")
    resumed = trained(workspace.root / "resumed", labelled, bert, spec)
    plain = trained(workspace.root / "plain", labelled, bert, spec | {"adversarial": {"kind": "none"}})
    weights = [(run / "data" / "model.safetensors").read_bytes() for run in (unbroken, resumed, plain)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["lora", "adalora", "ia3", "prompt"])
def test_two_ranks_train_what_one_does(workspace, bert, kind: str, strategy: str) -> None:
    if kind == "adalora" and strategy == "fsdp":
        pytest.skip("refused, see above")
    labelled = colours(workspace)
    spec = SPEC | {"method": {"kind": kind, "rank": 2}, "dropout": 0.0, "optimizer": {"learning_rate": 1e-3}}
    alone = load_file(trained(workspace.root / "one", labelled, bert, spec) / "data" / "model.safetensors")
    spec |= {"parallel": {"strategy": strategy}}
    both = load_file(trained(workspace.root / "two", labelled, bert, spec, 2) / "data" / "model.safetensors")
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("kind", "family"),
    [("full", "bert"), ("lora", "bert"), ("adalora", "llama"), ("ia3", "llama"), ("prefix", "llama"), ("prompt", "bert"), ("prompt", "llama"), ("adapter", "llama")],
)  # fmt: skip
def test_exported_folder_answers_as_the_trained_model(workspace, bert, llama, kind: str, family: str) -> None:
    """The export job compares logits, in a fresh process, before it says that it is done."""
    labelled, base = colours(workspace), bert if family == "bert" else llama
    writes = family == "llama" and kind in ("prefix", "prompt", "adapter")
    if writes:
        answers = {"chosen": "the cat runs", "rejected": "a dog"}
        labelled = workspace.labelled(
            "preference", [{"text": f"who {verb} {i}?", **answers} for verb in ("runs", "sees") for i in range(12)]
        )
    task = {"task": {"kind": "preference"}} if writes else {}
    spec = SPEC | task | {"method": {"kind": kind, "rank": 2, "num_virtual_tokens": 3}, "dropout": 0.0}
    folder = workspace.trained(labelled, base, spec)
    inside = Path(folder.folder())
    merged = kind in ("full", *MERGED)
    assert folder.scheme == ("dense" if merged else "adapter")
    assert (inside / "adapter").is_dir() != merged
    model = load_model(folder)
    if merged:
        plain = AutoModelForSequenceClassification.from_pretrained(inside).eval()
        assert type(plain) is type(model)
        assert torch.equal(logits(plain), logits(model))
    assert logits(model)[..., -1:].isfinite().all()


def test_update_trained_on_4_bit_weights_is_merged_into_those_of_the_base(workspace, bert) -> None:
    """As a machine without CUDA may do it: to export, an update of qlora is one of lora."""
    labelled = colours(workspace)
    checkpoint = workspace.finetune(labelled, bert, SPEC | {"method": {"kind": "lora", "rank": 2}})
    expected = workspace.export(checkpoint, bert, labelled)
    spec = checkpoint.spec | {"method": checkpoint.spec["method"] | {"kind": "qlora"}}
    (Path(checkpoint.uri) / MANIFEST).write_text(checkpoint.model_copy(update={"spec": spec}).canonical())
    folder = workspace.export(TaskCheckpoint.load(checkpoint.uri), bert, labelled)
    assert folder.scheme == "dense"
    weights = [(Path(one.folder()) / "model.safetensors").read_bytes() for one in (folder, expected)]
    assert weights[0] == weights[1]


def test_weights_that_are_not_of_the_method_are_not_loaded(workspace) -> None:
    from spark_jobs.errors import TrainingError
    from training.finetune.export import load_trained

    model = wrap(tiny("bert"), "lora")
    tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    load_trained(model, copy.deepcopy(tensors))
    tensors.pop(next(iter(tensors)))
    with pytest.raises(TrainingError, match="not those that the method trains"):
        load_trained(model, tensors)


def test_causal_model_with_an_adapter_gives_an_update_of_nothing_at_first() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SIZES.items() if k != "num_labels"}))
    before = logits(model)
    for kind in ("lora", "adalora", "ia3"):
        wrapped = apply_method(copy.deepcopy(model), MethodSpec(kind=kind), "CAUSAL_LM", 20)  # type: ignore[arg-type]
        assert torch.equal(logits(wrapped), before)
