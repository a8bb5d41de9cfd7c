"""A teacher from a model folder, and whether it can teach this student at all."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from spark_jobs.errors import RequestError
from spark_jobs.requests import Request
from training.distill_spec import DistillSpec
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model


def teacher_of(request: Request, distill: DistillSpec | None) -> ModelFolder | None:
    """The input `teacher`, where a model is to teach. Raises: RequestError if there is one and nobody learns from it."""
    if distill is not None and distill.teacher == "model":
        return ModelFolder.load(input_uri(request, "teacher"))
    if "teacher" in request.inputs:
        raise RequestError(
            f"job {request.job} has an input 'teacher' that it does not ask: set distill, or leave the input out"
        )
    return None


def load_teacher(teacher: ModelFolder) -> PreTrainedModel:
    """In fp32 and evaluation mode; of any scheme."""
    model = load_model(teacher)
    model.config.use_cache = False
    return model


def check_vocabulary(teacher: ModelFolder, student: str, vocabulary: dict[str, int]) -> None:
    """student: whose tokenizer it is, for the message. vocabulary: tokens and their ids.

    Raises: RequestError if a token has another id in the two: the same numbers would be other texts.
    """
    theirs = AutoTokenizer.from_pretrained(teacher.folder()).get_vocab()
    if theirs == vocabulary:
        return
    differing = sorted(
        token for token in theirs.keys() | vocabulary.keys() if theirs.get(token) != vocabulary.get(token)
    )
    raise RequestError(
        f"teacher {teacher.address} and {student} read other tokens: {len(theirs)} and {len(vocabulary)}, of which {len(differing)} "
        f"differ, for example {differing[0]!r}; take a student with the teacher's tokenizer, or another teacher"
    )


def check_length(teacher: ModelFolder, num_tokens: int) -> None:
    """Raises: RequestError if the teacher cannot read so many tokens at once."""
    longest = getattr(AutoConfig.from_pretrained(teacher.folder()), "max_position_embeddings", None)
    if longest is not None and num_tokens > longest:
        raise RequestError(
            f"teacher {teacher.address} reads {longest} tokens at most, the student {num_tokens}: make sequences shorter, or take another "
            "teacher"
        )


def vocabulary_of(tokenizer_folder: str) -> dict[str, int]:
    return Tokenizer.from_file(str(Path(tokenizer_folder) / "tokenizer.json")).get_vocab()
