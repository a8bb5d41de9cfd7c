"""Divergences and distances of a student from its teacher, as sums over targets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from training.distill.divergence import sum_binary_divergence, sum_divergence, sum_top_divergence
from training.distill.layers import sum_hidden_distance, token_weights, uniform_map
from training.distill.loss import DistilledLoss, token_divergence
from training.distill_spec import DistillSpec, HiddenSpec
from training.finetune_spec import FinetuneSpec
from training.pretrain.loss import IGNORED, sum_cross_entropy
from training.specs import TrainSpec

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_divergence_is_that_of_torch_over_real_targets_times_the_squared_temperature() -> None:
    student, teacher = draw(6, 5, seed=1), draw(6, 5, seed=2)
    targets = torch.tensor([0, IGNORED, 2, 4, IGNORED, 1])
    real, t = targets != IGNORED, 3.0
    expected = F.kl_div(F.log_softmax(student[real] / t, -1), F.softmax(teacher[real] / t, -1), reduction="sum") * t**2
    assert float(sum_divergence(student, teacher, targets, t)) == pytest.approx(float(expected), abs=1e-12)


def test_divergence_by_hand() -> None:
    """Teacher 3/4 and 1/4, student even: 3/4 ln 1.5 + 1/4 ln 0.5."""
    teacher = torch.log(torch.tensor([[0.75, 0.25]], dtype=torch.float64))
    found = sum_divergence(torch.zeros(1, 2, dtype=torch.float64), teacher, torch.tensor([0]), 1.0)
    assert float(found.detach()) == pytest.approx(0.1308120359, abs=1e-9)


def test_divergence_a_token_is_divided_by_real_tokens_alone_not_by_vocabulary_or_rows() -> None:
    """Two real tokens in two rows of two: one taught 3/4 and 1/4 to an even student, one taught what it says already."""
    teacher = torch.log(torch.tensor([[[0.75, 0.25], [0.4, 0.6]], [[0.9, 0.1], [0.2, 0.8]]], dtype=torch.float64))
    student = torch.zeros(2, 2, 2, dtype=torch.float64)
    student[0, 1] = teacher[0, 1]
    targets = torch.tensor([[0, 1], [IGNORED, IGNORED]])
    total = float(sum_divergence(student, teacher, targets, 1.0))
    by_torch = {
        how: float(F.kl_div(student.log_softmax(-1)[:1], teacher.exp()[:1], reduction=how))
        for how in ("mean", "batchmean")
    }
    assert total / 2 == pytest.approx(0.0654060180, abs=1e-9)
    assert by_torch == pytest.approx({"mean": total / 4, "batchmean": total})  # over classes too; over rows alone
    padded = [torch.cat([one, one[:, :1]], dim=1) for one in (student, teacher)]
    ignored = torch.cat([targets, torch.full((2, 1), IGNORED)], dim=1)
    assert float(sum_divergence(*padded, ignored, 1.0)) == total
    assert float(sum_divergence(teacher, teacher, targets, 2.0)) == 0.0


def test_gradient_at_temperature_is_the_difference_of_the_flattened_probabilities() -> None:
    student, teacher = draw(3, 4, seed=3).requires_grad_(), draw(3, 4, seed=4)
    sum_divergence(student, teacher, torch.zeros(3, dtype=torch.int64), 2.0).backward()
    expected = 2.0 * (F.softmax(student.detach() / 2, -1) - F.softmax(teacher / 2, -1))
    assert torch.allclose(student.grad, expected, atol=1e-12)


def test_no_real_target_gives_zero_and_zero_gradients() -> None:
    student = draw(2, 3).requires_grad_()
    loss = sum_divergence(student, draw(2, 3, seed=1), torch.full((2,), IGNORED), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not student.grad.any()


def test_places_that_both_rule_out_add_nothing_and_no_nan() -> None:
    student, teacher = draw(1, 4, seed=1), draw(1, 4, seed=2)
    hidden_student, hidden_teacher = student.clone(), teacher.clone()
    hidden_student[0, 3] = hidden_teacher[0, 3] = float("-inf")
    hidden_student.requires_grad_()
    target = torch.tensor([0])
    found = sum_divergence(hidden_student, hidden_teacher, target, 2.0)
    found.backward()
    assert float(found.detach()) == pytest.approx(
        float(sum_divergence(student[:, :3], teacher[:, :3], target, 2.0)), abs=1e-12
    )
    assert torch.isfinite(hidden_student.grad).all()


def test_binary_divergence_is_that_of_two_classes() -> None:
    student, teacher = draw(7, seed=1), draw(7, seed=2)
    two = [torch.stack([torch.zeros_like(x), x], dim=1) for x in (student, teacher)]
    expected = sum_divergence(two[0], two[1], torch.zeros(7, dtype=torch.int64), 1.5)
    assert float(sum_binary_divergence(student, teacher, 1.5)) == pytest.approx(float(expected), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 8))
def test_known_tokens_and_a_bucket_diverge_at_most_as_much_as_all_tokens(seed: int, k: int, size: int) -> None:
    student, teacher = 2 * draw(3, size, seed=seed), 2 * draw(3, size, seed=seed + 1)
    log_p, ids = F.log_softmax(teacher, -1).topk(min(k, size), dim=-1)
    whole = float(sum_divergence(student, teacher, torch.zeros(3, dtype=torch.int64), 1.0))
    part = float(sum_top_divergence(student, ids, log_p))
    assert -1e-9 <= part <= whole + 1e-9
    if k >= size - 1:
        assert part == pytest.approx(whole, abs=1e-6)


def test_fewer_known_tokens_than_asked_are_those_alone() -> None:
    student, teacher = draw(1, 5, seed=1), draw(1, 5, seed=2)
    log_p, ids = F.log_softmax(teacher, -1).topk(2, dim=-1)
    padded_ids = torch.cat([ids, torch.tensor([[-1]])], dim=1)
    padded = torch.cat([log_p, torch.tensor([[-0.1]], dtype=torch.float64)], dim=1)
    student.requires_grad_()
    found = sum_top_divergence(student, padded_ids, padded)
    found.backward()
    assert float(found.detach()) == pytest.approx(float(sum_top_divergence(student.detach(), ids, log_p)), abs=1e-12)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (1, 4, ((1, 4),)),
        (2, 3, ((1, 2), (2, 3))),
        (3, 12, ((1, 4), (2, 8), (3, 12))),
        (4, 4, ((1, 1), (2, 2), (3, 3), (4, 4))),
        (4, 2, ((1, 1), (2, 1), (3, 2), (4, 2))),
    ],
)
def test_layers_meet_evenly_up_to_the_last(student: int, teacher: int, expected: Any) -> None:
    assert uniform_map(student, teacher) == expected


def test_hidden_distance_is_a_mean_over_width_and_layers_and_a_sum_over_tokens() -> None:
    own = [torch.zeros(1, 2, 4, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)]
    theirs = (
        draw(1, 2, 4),
        torch.full((1, 2, 4), 2.0, dtype=torch.float64),
        torch.full((1, 2, 4), 3.0, dtype=torch.float64),
    )
    weights = torch.tensor([[1.0, 0.5]])
    found = sum_hidden_distance(own, theirs, ((1, 1), (2, 2)), HiddenSpec(), weights)
    assert float(found.detach()) == pytest.approx(1.5 * (4 + 9) / 2)


def test_cosine_distance_ignores_length() -> None:
    state = draw(1, 3, 4)
    found = sum_hidden_distance([state], (state, 5 * state), ((1, 1),), HiddenSpec(distance="cosine"), torch.ones(1, 3))
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-9)


def test_tokens_of_a_text_share_its_targets_and_padding_has_none() -> None:
    inputs = SimpleNamespace(
        targets_BS=torch.zeros(2, 3, dtype=torch.int64), model={"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    )
    weights = token_weights(inputs, torch.zeros(2, 3))  # three labels a text, as many as it has tokens
    assert weights.tolist() == [[1.5, 1.5, 0.0], [1.0, 1.0, 1.0]]
    assert token_weights(inputs, torch.zeros(2, 3, 9)).tolist() == [[1.0] * 3] * 2


class Fixed(torch.nn.Module):
    """A teacher with dropout, so that a test can see whether it was off."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.dropout = torch.nn.Parameter(logits), torch.nn.Dropout(0.5)

    def forward(self, **_: Tensor) -> Any:
        return ModelOutput(logits=self.dropout(self.logits))


def test_distilled_loss_is_the_share_of_both_and_never_trains_the_teacher() -> None:
    student, teacher = draw(2, 3, 5, seed=1).requires_grad_(), Fixed(draw(2, 3, 5, seed=2))
    targets = torch.tensor([[1, IGNORED, 2], [0, 4, IGNORED]])
    inputs = SimpleNamespace(targets_BS=targets, model_inputs=lambda device: {})
    spec = DistillSpec(alpha=0.3, temperature=2.0)
    loss = DistilledLoss(
        lambda output, batch: sum_cross_entropy(output.logits, batch.targets_BS),
        teacher,
        token_divergence(2.0),
        spec,
        CPU,
    )
    found = loss(ModelOutput(logits=student), inputs)
    found.backward()
    expected = 0.7 * sum_cross_entropy(student, targets) + 0.3 * sum_divergence(student, teacher.logits, targets, 2.0)
    assert float(found.detach()) == pytest.approx(float(expected), abs=1e-12)
    assert teacher.logits.grad is None


def test_spec_without_a_teacher_is_written_as_before_there_was_one() -> None:
    for spec in (TrainSpec(), FinetuneSpec()):
        assert "distill" not in spec.model_dump(mode="json")
    assert TrainSpec(distill=DistillSpec()).model_dump(mode="json")["distill"]["alpha"] == 0.5
    assert "profile" not in TrainSpec().model_dump(mode="json", exclude={"profile"})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"parallel": {"tp": 2}}, "parallel.tp"),
        ({"parallel": {"cp": 2}}, "parallel.cp"),
        ({"parallel": {"pp": 2, "pp_micro_batches": 2}}, "parallel.pp"),
        ({"loss": {"chunk_tokens": 8}}, "loss.chunk_tokens"),
        ({"distill": {"teacher": "served", "temperature": 2.0}}, "temperature 2"),
        ({"distill": {"teacher": "served", "temperature": 1.0, "hidden": {}}}, "hidden"),
    ],
)
def test_what_does_not_go_with_a_teacher_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TrainSpec.model_validate({"distill": {}, "sequences_per_step": 4} | fields)
