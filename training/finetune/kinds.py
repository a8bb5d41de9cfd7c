"""The task of each kind, made from its spec."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from training.finetune.answers import QuestionAnswering
from training.finetune.classification import Classification, MultiLabel, check_label_set
from training.finetune.dialogue import Dialogue
from training.finetune.preference import Preference
from training.finetune.ranking import Ranking
from training.finetune.relation import Relation
from training.finetune.similarity import Regression, Similarity
from training.finetune.tagging import Tagging
from training.finetune.task import Task
from training.finetune.writing import writing_task
from training.finetune_spec import TaskSpec


def make_task(
    spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, label_set: Sequence[str], config: PreTrainedConfig
) -> Task:
    """config: of the base; it decides how a task that writes text reads and writes.

    Raises: DataError if the label set does not fit the kind. RequestError if the base cannot do the kind.
    """
    match spec.kind:
        case "classification":
            check_label_set(label_set, spec.kind)
            return Classification(spec, tokenizer, label_set)
        case "multi_label":
            check_label_set(label_set, spec.kind)
            return MultiLabel(spec, tokenizer, label_set)
        case "tagging":
            return Tagging(spec, tokenizer, label_set)
        case "relation":
            check_label_set(label_set, spec.kind)
            return Relation(spec, tokenizer, label_set)
        case "question_answering":
            return QuestionAnswering(spec, tokenizer, label_set)
        case "translation" | "summarization":
            return writing_task(spec, tokenizer, config)
        case "dialogue":
            return Dialogue(spec, tokenizer, config)
        case "similarity":
            return Similarity(spec, tokenizer)
        case "regression":
            return Regression(spec, tokenizer)
        case "preference":
            return Preference(spec, tokenizer, config)
        case "ranking":
            return Ranking(spec, tokenizer)
    raise AssertionError(spec.kind)
