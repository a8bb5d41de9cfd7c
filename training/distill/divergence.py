"""How far a student's answers are from a teacher's: T^2 KL(teacher || student), summed over targets, in nats.

The factor T^2 keeps the gradient's size where the temperature flattens both (arXiv:1503.02531, section 2).

Shapes: N targets, C classes or vocabulary, K likeliest tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.pretrain.loss import IGNORED


def sum_divergence(student_NC: Tensor, teacher_NC: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    """Over real targets (not IGNORED); the classes lie in the last dimension, the rest is shaped as the targets.

    A class that both rule out (-inf) adds nothing. At least fp32; 0 with zero gradients without a real target.
    """
    real_N = targets_N != IGNORED
    log_q_NC = F.log_softmax(wide(student_NC[real_N]) / temperature, dim=-1)
    log_p_NC = F.log_softmax(wide(teacher_NC[real_N]) / temperature, dim=-1)
    return temperature**2 * _expected_excess(log_p_NC, log_q_NC).sum()


def sum_binary_divergence(student_N: Tensor, teacher_N: Tensor, temperature: float) -> Tensor:
    """Of yes-or-no answers, each a target of its own; logits of yes."""
    student_N, teacher_N = wide(student_N) / temperature, wide(teacher_N) / temperature
    yes, no = F.logsigmoid(teacher_N), F.logsigmoid(-teacher_N)
    excess_N = _expected_excess(yes, F.logsigmoid(student_N)) + _expected_excess(no, F.logsigmoid(-student_N))
    return temperature**2 * excess_N.sum()


def sum_top_divergence(student_NC: Tensor, top_ids_NK: Tensor, top_log_p_NK: Tensor) -> Tensor:
    """Where of the teacher only the likeliest tokens are known: these, and one bucket of all others, at temperature 1.

    top_ids: int64, below 0 where there are fewer than K. top_log_p: log-probabilities; what they leave of 1 is the bucket's,
    nothing where rounding made them more. It is at most the full divergence: merging outcomes cannot part two distributions.
    """
    log_q_NC = F.log_softmax(wide(student_NC), dim=-1)
    known_NK = top_ids_NK >= 0
    ids_NK = top_ids_NK.clamp(min=0)
    log_p_NK = wide(top_log_p_NK).masked_fill(~known_NK, float("-inf"))
    log_q_NK = log_q_NC.gather(1, ids_NK)
    listed_NC = torch.zeros_like(log_q_NC).scatter_add(1, ids_NK, known_NK.to(log_q_NC.dtype)) > 0
    whole_N = listed_NC.all(1)  # then there is no bucket, and what rounding leaves of 1 belongs nowhere
    rest_p_N = (1 - log_p_NK.exp().sum(1)).clamp(min=0).masked_fill(whole_N, 0)
    rest_log_q_N = torch.logsumexp(log_q_NC.masked_fill(listed_NC & ~whole_N[:, None], float("-inf")), dim=-1)
    return _expected_excess(log_p_NK, log_q_NK).sum() + _expected_excess(rest_p_N.log(), rest_log_q_N).sum()


def _expected_excess(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), 0 where p is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p))


def wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
