"""FGM, PGD and FreeLB: what is moved, by how much, that nothing stays moved, and that ranks do not change it. In float64."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.parity import on_ranks
from spark_jobs.errors import TrainingError
from training.finetune.adversarial import against, step_up, word_embedding
from training.finetune.methods import apply_method
from training.finetune.task import TaskInputs
from training.finetune_spec import AdversarialSpec, MethodSpec
from training.parallel_spec import ParallelSpec
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.parallel import WholeModel, parallelize

SPECS = {
    "fgm": AdversarialSpec(kind="fgm", epsilon=0.5),
    "pgd": AdversarialSpec(kind="pgd", epsilon=0.5, step_size=0.2, num_steps=4),
    "freelb": AdversarialSpec(kind="freelb", epsilon=0.5, step_size=0.2, num_steps=3),
}
LENGTHS = (9, 3, 7, 5, 4, 8, 2, 6)
VOCABULARY = 30


def tiny_bert(dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        num_labels=3, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0, max_position_embeddings=16,
        attn_implementation="sdpa", initializer_range=0.3,
    )  # fmt: skip
    return BertForSequenceClassification(config).double().train()


def batches(lengths: tuple[int, ...] = LENGTHS, first: int = 0, size: int = 4) -> list[TaskInputs]:
    """Examples `first`, first + 1 ... of the given lengths, in micro-batches."""
    made = []
    for start in range(0, len(lengths), size):
        part = lengths[start : start + size]
        rows = [torch.randint(1, VOCABULARY, (n,), generator=torch.Generator().manual_seed(first + start + i)) for i, n in enumerate(part)]  # fmt: skip
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        targets = torch.tensor([(first + start + i) % 3 for i in range(len(part))])
        made.append(
            TaskInputs(
                {"input_ids": ids, "attention_mask": mask}, targets, tuple(map(str, range(start, start + len(part))))
            )
        )
    return made


def loss_of(output: Any, inputs: TaskInputs) -> Tensor:
    return sum_cross_entropy(output.logits, inputs.targets_BS)


def gradients(
    spec: AdversarialSpec, ranks: Ranks, strategy: str, size: int = 4, lora: bool = False
) -> dict[str, Tensor]:
    """Whole gradients of one step over all examples, with the loss of all ranks under `loss`."""
    model: Any = tiny_bert()
    if lora:
        model = apply_method(model, MethodSpec(kind="lora"), "SEQ_CLS").double()
        for name, parameter in model.named_parameters():  # an update of zero has no gradient in A
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    parallel = ParallelSpec.model_validate({"strategy": strategy})
    mesh = make_mesh(ranks, parallel.degrees(ranks.world_size))
    shared = against(parallelize(model, mesh, parallel, output_loss=loss_of), spec)
    share = len(LENGTHS) // ranks.world_size
    first = ranks.rank * share
    loss = shared.forward_backward(batches(LENGTHS[first : first + share], first, size), float(len(LENGTHS)))
    found = {name: p.grad for name, p in shared.module.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}
    return whole | {"loss": torch.tensor(mesh.sum_once([loss])[0], dtype=torch.float64)}


@functools.cache
def alone() -> dict[str, dict[str, Tensor]]:
    """One rank; one micro-batch for each kind, and two where that says so."""

    def run(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
        whole = {name: gradients(spec, ranks, "ddp", size=8) for name, spec in SPECS.items()}
        parts = {f"{name}, accumulated": gradients(spec, ranks, "ddp", size=2) for name, spec in SPECS.items()}
        frozen = {f"{name}, lora": gradients(spec, ranks, "ddp", size=8, lora=True) for name, spec in SPECS.items()}
        return whole | parts | frozen | {"plain": gradients(AdversarialSpec(), ranks, "ddp", size=8)}

    (found,) = on_ranks(run, 1)
    return found


@functools.cache
def together() -> list[dict[str, dict[str, Tensor]]]:
    """Two ranks, two micro-batches each."""

    def run(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
        kinds = [(name, strategy) for name in SPECS for strategy in ("ddp", "fsdp")]
        whole = {f"{name}, {strategy}": gradients(SPECS[name], ranks, strategy, 2) for name, strategy in kinds}
        frozen = {f"{name}, {s}, lora": gradients(SPECS[name], ranks, s, 2, lora=True) for name, s in kinds}
        return whole | frozen

    return on_ranks(run, 2)


def by_hand(spec: AdversarialSpec) -> dict[str, Tensor]:
    """FGM and PGD as their papers write them: one process, one batch, the table itself moved and copied back."""
    model = tiny_bert()
    table = model.bert.embeddings.word_embeddings.weight
    (batch,) = batches(size=8)

    def backward() -> Tensor:
        loss = loss_of(model(**batch.model), batch) / len(LENGTHS)
        loss.backward()
        return loss.detach()

    loss = backward()
    clean = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = table.detach().clone()
    for _ in range(1 if spec.kind == "fgm" else spec.num_steps):
        slope = table.grad.clone()
        model.zero_grad()
        with torch.no_grad():
            table += (spec.epsilon if spec.kind == "fgm" else spec.step_size) * slope / slope.norm()
            move = table - before
            if move.norm() > spec.epsilon:
                table.copy_(before + spec.epsilon * move / move.norm())
        backward()
    return {name: p.grad + clean[name] for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss}


def freelb_by_hand(spec: AdversarialSpec) -> dict[str, Tensor]:
    """Sequence by sequence, each in a batch of its own, so that no padding is there to be moved."""
    model = tiny_bert()
    embed, loss_sum = model.bert.embeddings.word_embeddings, torch.zeros((), dtype=torch.float64)
    for i, length in enumerate(LENGTHS):
        (batch,) = batches((length,), i)
        move = torch.zeros(1, length, 16, dtype=torch.float64)
        for _ in range(spec.num_steps):
            move.requires_grad_()
            output = model(inputs_embeds=embed(batch.model["input_ids"]) + move)
            loss = loss_of(output, batch) / (len(LENGTHS) * spec.num_steps)
            (slope,) = torch.autograd.grad(loss, move, retain_graph=True)
            loss.backward()
            loss_sum = loss_sum + loss.detach()
            moved = move.detach() + spec.step_size * slope / slope.norm()
            move = moved * min(1.0, spec.epsilon / float(moved.norm()))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss_sum}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), atol=1e-12, rtol=1e-10, msg=lambda text, n=name: f"{n}: {text}")  # fmt: skip


@pytest.mark.parametrize("name", ["fgm", "pgd"])
def test_table_moved_by_a_hook_gives_the_gradients_of_a_table_that_is_moved(name: str) -> None:
    assert_same(alone()[name], by_hand(SPECS[name]))


def test_freelb_in_a_padded_batch_gives_the_gradients_of_each_sequence_by_itself() -> None:
    assert_same(alone()["freelb"], freelb_by_hand(SPECS["freelb"]))


@pytest.mark.parametrize("name", [*SPECS])
def test_micro_batches_do_not_change_the_gradients(name: str) -> None:
    assert_same(alone()[f"{name}, accumulated"], alone()[name])


@pytest.mark.parametrize("name", [*SPECS])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_ranks_give_the_gradients_of_one(name: str, strategy: str, method: str) -> None:
    told = ", lora" if method == "lora" else ""
    for rank in together():
        assert_same(rank[f"{name}, {strategy}{told}"], alone()[name + told])


def test_each_kind_gives_gradients_that_differ_from_plain_ones_and_from_one_another() -> None:
    weights = [alone()[name]["classifier.weight"] for name in (*SPECS, "plain")]
    for i, one in enumerate(weights):
        for other in weights[:i]:
            assert (one - other).norm() > 1e-4


def test_frozen_base_keeps_frozen_and_its_adapter_feels_the_move() -> None:
    """Of a LoRA model the table has no gradient at all: what it answers is moved all the same."""
    for name in SPECS:
        trained = alone()[f"{name}, lora"]
        assert all("lora_" in key or "classifier" in key or key == "loss" for key in trained)
        assert any(gradient.abs().sum() > 0 for key, gradient in trained.items() if "lora_A" in key)


class OneRank:
    """What WholeModel wants of a mesh; no process group."""

    tp = None
    ranks = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def one_rank() -> Iterator[None]:
    """This process is a group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def whole(model: nn.Module, loss: Callable[[Any, TaskInputs], Tensor] = loss_of) -> WholeModel:
    return WholeModel(model, model, OneRank(), loss)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
def test_every_weight_is_bit_for_bit_as_before_and_no_hook_stays(name: str) -> None:
    """PaddleNLP#723."""
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    against(whole(model), SPECS[name]).forward_backward(batches(), 8.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not word_embedding(model)._forward_hooks


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_exception_in_any_pass_leaves_weights_and_no_hook(name: str, fails_at: int) -> None:
    model, calls = tiny_bert(), []
    before = copy.deepcopy(model.state_dict())

    def loss(output: Any, inputs: TaskInputs) -> Tensor:
        calls.append(1)
        if len(calls) == fails_at + 1:
            raise RuntimeError("out of memory")
        return loss_of(output, inputs)

    with pytest.raises(RuntimeError, match="out of memory"):
        against(whole(model, loss), SPECS[name]).forward_backward(batches(), 8.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not word_embedding(model)._forward_hooks


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
def test_gradient_of_zero_moves_nothing_and_is_no_nan(name: str) -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.classifier.weight.zero_()  # the loss no longer depends on the text
    loss = against(whole(model), SPECS[name]).forward_backward(batches(), 8.0)
    plain = tiny_bert()
    with torch.no_grad():
        plain.classifier.weight.zero_()
    assert loss == pytest.approx(whole(plain).forward_backward(batches(), 8.0), abs=1e-12)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
def test_loss_at_the_move_is_higher(name: str) -> None:
    losses: list[float] = []

    def loss(output: Any, inputs: TaskInputs) -> Tensor:
        value = loss_of(output, inputs)
        losses.append(float(value.detach()))
        return value

    against(whole(tiny_bert(), loss), SPECS[name]).forward_backward(batches(size=8), 8.0)
    assert all(after > before for before, after in itertools.pairwise(losses)), losses


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
def test_all_passes_drop_the_same_units_and_the_random_state_goes_on_as_in_a_plain_step(name: str) -> None:
    """With moves of no length every pass must give the same loss."""
    spec = SPECS[name].model_copy(update={"epsilon": 1e-30, "step_size": 1e-30})
    losses: list[float] = []

    def loss(output: Any, inputs: TaskInputs) -> Tensor:
        value = loss_of(output, inputs)
        losses.append(float(value.detach()))
        return value

    model = tiny_bert(dropout=0.5)
    torch.manual_seed(3)
    against(whole(model, loss), spec).forward_backward(batches(size=8), 8.0)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    whole(model).forward_backward(batches(size=8), 8.0)
    assert torch.equal(after, torch.get_rng_state())
    assert len(losses) > 1
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-12)


@pytest.mark.usefixtures("one_rank")
def test_freelb_of_one_step_is_a_plain_step() -> None:
    plain, model = tiny_bert(), tiny_bert()
    whole(plain).forward_backward(batches(), 8.0)
    spec = SPECS["freelb"].model_copy(update={"num_steps": 1})
    against(whole(model), spec).forward_backward(batches(), 8.0)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.usefixtures("one_rank")
def test_freelb_moves_no_padding() -> None:
    """The move is caught where it is added."""
    model, moved = tiny_bert(), []
    embedding = word_embedding(model)
    model.bert.embeddings.LayerNorm.register_forward_pre_hook(lambda module, args: moved.append(args[0].detach()))
    (batch,) = batches(size=8)
    against(whole(model), SPECS["freelb"]).forward_backward([batch], 8.0)
    padding = batch.model["attention_mask"] == 0
    assert padding.any()
    assert embedding.weight.requires_grad
    for later in moved[1:]:
        assert torch.equal(later[padding], moved[0][padding])
        lengths = (later - moved[0]).flatten(1).norm(dim=1)
        assert bool((lengths > 0.1).all()), "every sequence is moved"
        assert bool((lengths <= 0.5 + 1e-12).all()), "none further than epsilon"


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("name", [*SPECS])
def test_head_tied_to_the_table_and_a_decoder_that_shares_it_are_trained(name: str) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).double().train()
    (batch,) = batches((6, 4), size=2)
    inputs = TaskInputs(
        {**batch.model, "decoder_input_ids": torch.randint(1, 30, (2, 6))}, torch.randint(1, 30, (2, 6)), ("a", "b")
    )
    before = copy.deepcopy(model.state_dict())
    against(whole(model), SPECS[name]).forward_backward([inputs], 12.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.usefixtures("one_rank")
def test_virtual_tokens_before_the_text_are_not_moved() -> None:
    model = apply_method(tiny_bert(), MethodSpec(kind="prompt", num_virtual_tokens=2), "SEQ_CLS").double()
    for spec in SPECS.values():
        model.zero_grad()
        against(whole(model), spec).forward_backward(batches(), 8.0)
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.requires_grad)


class NoEmbedding(nn.Module):
    config = BertConfig()

    def get_input_embeddings(self) -> nn.Module:
        return nn.Linear(2, 2)


def test_model_that_does_not_read_tokens_is_refused() -> None:
    with pytest.raises(TrainingError, match="a bert does not read tokens by an embedding"):
        word_embedding(NoEmbedding())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6),
    st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
)
@example([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], 106.0, 1.0)
def test_move_never_leaves_the_ball_and_never_grows_without_a_slope(
    slope: list[float], start: list[float], step_size: float, epsilon: float
) -> None:
    move = torch.tensor(start, dtype=torch.float64).reshape(2, 3)
    move *= torch.clamp(epsilon / move.norm(dim=1, keepdim=True).clamp_min(1e-300), max=1.0)
    before, slope_23 = move.clone(), torch.tensor(slope, dtype=torch.float64).reshape(2, 3)
    slope_23[0] = 0.0
    step_up(move, slope_23, step_size, epsilon, dims=(1,))
    assert bool((move.norm(dim=1) <= epsilon * (1 + 1e-12)).all())
    torch.testing.assert_close(move[0], before[0], rtol=1e-12, atol=0)
    assert bool(torch.isfinite(move).all())
    assert float(F.cosine_similarity(move[1] - before[1], slope_23[1], dim=0)) >= -1e-9
