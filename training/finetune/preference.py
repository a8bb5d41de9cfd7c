"""Two answers to one prompt, of which one is preferred: direct preference optimisation (DPO, arXiv:2305.18290).

    loss = -log sigmoid(beta m),  m = (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)

p is the model that is trained, p_ref the base as it was; log p is over the tokens of the last answer and the token that
ends it, summed. p_ref is asked once, before training, without dropout; the trained model has none either unless the spec
says so, hence a first loss of ln 2. Prompts are rendered as in dialogue: `messages`, or `text` as one turn of the user's.

Shapes: B pairs; in a batch chosen answers stand before rejected ones, 2B rows. T tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from training.finetune.dialogue import Dialogue, Message, shorter_and_shorter
from training.finetune.generation import nats_of, seen
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable, in_batches, pad
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap, mean_scores
from training.metrics.ranking import pairwise_accuracy
from training.metrics.score import Score
from training.pretrain.loss import IGNORED, targets_of
from training.pretrain.model import dropouts_of

SIDES = ("chosen", "rejected")
REFERENCE_BATCH = 8  # pairs the reference is asked about at once


class Preference(Dialogue):
    """text or messages, chosen, rejected. Counted is the pair."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        super().__init__(spec, tokenizer, config)
        self.dropouts = dropouts_of(config)

    def config_fields(self) -> dict[str, Any]:
        return dict.fromkeys(self.dropouts, 0.0)

    def encode(self, row: Row) -> list[Example]:
        prompt: list[Message] = row["messages"] or [{"role": "user", "content": row["text"] or ""}]
        answers = [(row[side] or "").strip() for side in SIDES]
        if not (prompt[-1]["content"] or "").strip():
            raise Unusable("empty_text")
        if prompt[-1]["role"] == "assistant":
            raise Unusable("last_turn_is_assistant")
        if not all(answers):
            raise Unusable("no_target")
        if answers[0] == answers[1]:
            raise Unusable("same_answers")
        for text in (*answers, *(message["content"] or "" for message in prompt)):
            self.refuse_special(text)
        try:
            sides = self.fitting_pair(prompt, answers)
        except TemplateError as error:
            raise Unusable("refused_by_template") from error
        features = {side: ids for side, (ids, _) in zip(SIDES, sides, strict=True)}
        features |= {f"{side}_labels": labels for side, (_, labels) in zip(SIDES, sides, strict=True)}
        return [Example(row["id"], features, sum(len(ids) for ids, _ in sides))]

    def fitting_pair(self, prompt: Sequence[Message], answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens and labels with each answer, both after the same turns, so many that both have at most max_length tokens.

        Raises: Unusable if they do not fit after the last turn alone.
        """
        for turns in shorter_and_shorter(prompt):
            sides = [self.tokens_of([*turns, {"role": "assistant", "content": answer}]) for answer in answers]
            if all(len(ids) <= self.spec.max_length for ids, _ in sides):
                return [(ids, last_answer(ids, learned)) for ids, learned in sides]
        raise Unusable("no_target")

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        features = [example.features for example in examples]
        ids = [one[side] for side in SIDES for one in features]
        labels_2BT = pad([one[f"{side}_labels"] for side in SIDES for one in features], IGNORED)
        wanted = {"targets": targets_of(labels_2BT)}
        if all("reference" in one for one in features):
            wanted["reference"] = torch.tensor([one["reference"] for one in features], dtype=torch.float64).T.flatten()
        return TaskInputs(
            {"input_ids": pad(ids, self.pad_id), "attention_mask": seen(ids)},
            torch.zeros(len(examples), dtype=torch.int64),
            tuple(example.id for example in examples),
            wanted,
        )

    def prepare(self, model: nn.Module, examples: Sequence[Example], device: torch.device) -> list[Example]:
        """With `reference`: log-probabilities of both answers under `model` as it is, in nats.

        Batches are dealt out to the ranks and the answers gathered, so that their number changes nothing. A collective.
        """
        model.eval()
        rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        batches = list(in_batches(examples, REFERENCE_BATCH))
        own = [self.log_probabilities(model, self.collate(batch)) for batch in batches[rank::num_ranks]]
        gathered: list[Any] = [own]
        if num_ranks > 1:
            gathered = [None] * num_ranks
            dist.all_gather_object(gathered, own)
        known: dict[int, tuple[float, float]] = {}
        for number, batch in enumerate(batches):
            pairs = gathered[number % num_ranks][number // num_ranks]
            known |= {id(example): pair for example, pair in zip(batch, pairs, strict=True)}
        return [
            dataclasses.replace(example, features={**example.features, "reference": known[id(example)]})
            for example in examples
        ]

    @torch.no_grad()
    def log_probabilities(self, model: nn.Module, inputs: TaskInputs) -> list[tuple[float, float]]:
        """Of chosen and rejected, in nats."""
        output = model(**inputs.model_inputs(next(model.parameters()).device))
        nats_2B, _ = nats_of(output, inputs.wanted["targets"])
        chosen_B, rejected_B = (-nats_2B).chunk(2)
        return list(zip(chosen_B.tolist(), rejected_B.tolist(), strict=True))

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        """Nats, summed over pairs."""
        nats_2B, _ = nats_of(output, inputs.wanted["targets"])
        gained_chosen_B, gained_rejected_B = (-nats_2B - inputs.wanted["reference"]).chunk(2)
        return -F.logsigmoid(self.spec.beta * (gained_chosen_B - gained_rejected_B)).sum()

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        """chosen, rejected: log-probabilities; reference: the base's, where it was asked."""
        pairs = self.log_probabilities(model, inputs)
        references: Iterator[Any] = iter([None] * len(pairs))
        if "reference" in inputs.wanted:
            references = zip(*(side.tolist() for side in inputs.wanted["reference"].chunk(2)), strict=True)
        return [
            {"chosen": chosen, "rejected": rejected, "reference": reference}
            for (chosen, rejected), reference in zip(pairs, references, strict=True)
        ]

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """pairwise_accuracy, margin: of rewards, beta (log p - log p_ref), if the base was asked; else of log p as it is,
        which longer answers have less of."""
        found = [next(iter(predictions[row["id"]]), None) for row in rows]
        by_reward = all(one is None or one["reference"] is not None for one in found)
        worths = np.array([self._worths(one, by_reward) for one in found], np.float64).reshape(-1, 2)
        accuracy = pairwise_accuracy(worths[:, 0].tolist(), worths[:, 1].tolist(), Bootstrap(seed=seed))
        told = f"by:reward|beta:{self.spec.beta:g}" if by_reward else "by:likelihood"
        margins = worths[:, 0] - worths[:, 1]
        invalid = int((~np.isfinite(margins)).sum())
        return {
            "pairwise_accuracy": accuracy.model_copy(update={"signature": f"{told}|{accuracy.signature}"}),
            **mean_scores({"margin": margins}, Bootstrap(seed=seed), invalid, told),
        }

    def _worths(self, prediction: Prediction | None, by_reward: bool) -> tuple[float, float]:
        if prediction is None:
            return math.nan, math.nan
        if not by_reward:
            return prediction["chosen"], prediction["rejected"]
        chosen, rejected = prediction["reference"]
        return self.spec.beta * (prediction["chosen"] - chosen), self.spec.beta * (prediction["rejected"] - rejected)


def last_answer(ids: Sequence[int], learned: Sequence[bool]) -> list[int]:
    """Labels of the last run of learned tokens; what the assistant said before is the same for both, and part of the prompt.

    Raises: Unusable if there is none.
    """
    if not any(learned):
        raise Unusable("no_target")
    end = max(place for place, one in enumerate(learned) if one)
    start = next((place + 1 for place in range(end, -1, -1) if not learned[place]), 0)
    return [number if start <= place <= end else IGNORED for place, number in enumerate(ids)]
