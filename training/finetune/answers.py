"""Answers as spans of a context, or none: extractive question answering, SQuAD 1.1 and 2.0.

A context longer than `max_length` is read in windows that share `stride` tokens, each behind the whole question. A window
that holds an answer is trained to point at its first and last token; one that holds none, as of an unanswerable question,
at its first special token, [CLS] of BERT ("null").

Of each window the best span is taken whose tokens all are of the context; its score is the logits of its two ends less
those of null: the log odds of span and null, which compare over windows although each window has a softmax of its own.
The best window answers; if its score is not above 0 there is no answer, where `may_abstain` allows that.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering

from training.finetune.classification import SequenceTask
from training.finetune.task import Example, Prediction, Row, TaskInputs, Unusable, pad
from training.finetune.windows import Offset, Window, cut_windows
from training.metrics.answers import Normalization, answer_scores
from training.metrics.bootstrap import Bootstrap
from training.metrics.score import Score
from training.pretrain.loss import sum_cross_entropy

NOWHERE = -1  # where a token has no characters of the context


class QuestionAnswering(SequenceTask):
    """text: question; pair: context; spans: right answers in the context, any one of them. Loss: cross entropy over the
    tokens of a window, of the first and of the last token: two targets a window."""

    auto_class: Any = AutoModelForQuestionAnswering
    peft_type = "QUESTION_ANS"

    def config_fields(self) -> dict[str, Any]:
        return {"num_labels": 2}  # a first and a last token

    def encode(self, row: Row) -> list[Example]:
        question, context = row["text"] or "", row["pair"] or ""
        if not question.strip():
            raise Unusable("empty_text")
        answers = [trimmed(context, span) for span in row["spans"] or []]
        windows = cut_windows(
            self.tokenizer, self.cut_question(question), context, self.spec.max_length, self.spec.stride
        )
        if not windows:
            raise Unusable("empty_context")
        places = [place_in(window.offsets, answers) for window in windows]
        if answers and not any(places):
            raise Unusable("no_target")
        return [self._example(row["id"], window, place) for window, place in zip(windows, places, strict=True)]

    def cut_question(self, question: str) -> str:
        """At most half of the room: the rest is the context's."""
        room = (self.spec.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)) // 2
        encoded = self.tokenizer(
            question, add_special_tokens=False, truncation=True, max_length=room, return_offsets_mapping=True
        )
        return question[: max((end for _, end in encoded["offset_mapping"]), default=0)]

    def _example(self, name: str, window: Window, place: tuple[int, int] | None) -> Example:
        ids = window.features["input_ids"]
        null = ids.index(self.tokenizer.cls_token_id) if self.tokenizer.cls_token_id in ids else 0
        offsets = [offset or (NOWHERE, NOWHERE) for offset in window.offsets]
        features = window.features | {"null": null, "target": place or (null, null)}
        features |= {"starts": [start for start, _ in offsets], "ends": [end for _, end in offsets]}
        return Example(name, features, len(ids))

    def collate(self, examples: Sequence[Example]) -> TaskInputs:
        targets = torch.tensor([example.features["target"] for example in examples])
        wanted = {name: pad([example.features[name] for example in examples], NOWHERE) for name in ("starts", "ends")}
        wanted["nulls"] = torch.tensor([example.features["null"] for example in examples])
        return TaskInputs(self.batch_of(examples), targets, tuple(example.id for example in examples), wanted)

    def loss(self, output: Any, inputs: TaskInputs) -> Tensor:
        logits_B2T = end_logits(output, inputs)
        return sum_cross_entropy(logits_B2T, inputs.targets_BS.to(logits_B2T.device), self.loss_spec)

    def predict(self, model: nn.Module, inputs: TaskInputs) -> list[Prediction]:
        """start, end: characters of the context; score: log odds against null. All None where a logit is not finite."""
        with torch.no_grad():
            output = model(**inputs.model_inputs(next(model.parameters()).device))
        logits_B2T = end_logits(output, inputs).double().cpu().numpy()
        wanted = {name: tensor.numpy() for name, tensor in inputs.wanted.items()}
        real_BT = inputs.model["attention_mask"].numpy() > 0
        predictions: list[Prediction] = []
        for row, logits_2T in enumerate(logits_B2T):
            if not np.isfinite(logits_2T[:, real_BT[row]]).all():
                predictions.append({"start": None, "end": None, "score": None})
                continue
            allowed_T = wanted["starts"][row] != NOWHERE
            first, last, best = best_span(logits_2T, allowed_T, self.spec.max_answer_tokens)
            start, end = int(wanted["starts"][row, first]), int(wanted["ends"][row, last])
            null = float(logits_2T[:, wanted["nulls"][row]].sum())
            predictions.append({"start": start, "end": end, "score": best - null})
        return predictions

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """Normalization as SQuAD's if the questions are in Latin script, else by characters and words of any script."""
        references = [[(row["pair"] or "")[span["start"] : span["end"]] for span in row["spans"] or []] for row in rows]
        abstain = self.spec.may_abstain
        found = [answer_of(row["pair"] or "", predictions[row["id"]], abstain) for row in rows]
        normalization = normalization_of([row["text"] or "" for row in rows])
        scores = answer_scores(references, found, Bootstrap(seed=seed), normalization)
        return {"token_f1": scores["token_f1"]} | scores


def trimmed(context: str, span: Mapping[str, Any]) -> Offset:
    """An answer's characters without white space around them. Raises: Unusable if it is not there."""
    start, end = span["start"], span["end"]
    text = context[start:end] if 0 <= start < end <= len(context) else ""
    if not text.strip() or (span["label"] and span["label"] != text):
        raise Unusable("answer_not_in_context")
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def place_in(offsets: Sequence[Offset | None], answers: Sequence[Offset]) -> tuple[int, int] | None:
    """First and last token of the first answer that lies in the window as a whole; None if none does."""
    seen = [(place, *offset) for place, offset in enumerate(offsets) if offset is not None]
    for start, end in answers:
        if seen[0][1] <= start and end <= seen[-1][2]:
            first = next(place for place, _, token_end in seen if token_end > start)
            last = next(place for place, token_start, _ in reversed(seen) if token_start < end)
            if first <= last:  # else no token has a character of it
                return first, last
    return None


def end_logits(output: Any, inputs: TaskInputs) -> Tensor:
    """Logits of first and last token, (B, 2, T); -inf at padding, so that no probability goes there."""
    mask_BT = inputs.model["attention_mask"]
    logits_B2T = torch.stack([output.start_logits, output.end_logits], dim=1)
    logits_B2T = logits_B2T[..., -mask_BT.shape[1] :]  # virtual tokens of prompt tuning stand before the text
    return logits_B2T.masked_fill(mask_BT.to(logits_B2T.device)[:, None] == 0, float("-inf"))


def best_span(logits_2T: np.ndarray, allowed_T: np.ndarray, max_tokens: int) -> tuple[int, int, float]:
    """First token, last token and summed logits of the best span of at most `max_tokens` allowed tokens, the earliest of
    several. At least one token must be allowed."""
    first_T, last_T = np.where(allowed_T, logits_2T, -np.inf)
    places = np.arange(len(allowed_T))
    lengths_TT = places[None, :] - places[:, None] + 1
    sums_TT = np.where((lengths_TT >= 1) & (lengths_TT <= max_tokens), first_T[:, None] + last_T[None, :], -np.inf)
    first, last = np.unravel_index(int(sums_TT.argmax()), sums_TT.shape)
    return int(first), int(last), float(sums_TT[first, last])


def answer_of(context: str, predictions: Sequence[Prediction], may_abstain: bool) -> str | None:
    """Of the window whose span has the highest score; "" if null is likelier; None without a finite prediction."""
    if not predictions or any(prediction["score"] is None for prediction in predictions):
        return None
    best = max(predictions, key=lambda prediction: prediction["score"])
    return context[best["start"] : best["end"]] if best["score"] > 0 or not may_abstain else ""


def normalization_of(texts: Sequence[str]) -> Normalization:
    """squad where most letters are Latin."""
    letters = [c for text in texts for c in text if c.isalpha()]
    latin = sum(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    return "squad" if 2 * latin >= len(letters) else "unicode"
