"""A translation model in a local folder: an encoder-decoder, or a causal model that is told what to do by its prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList

from spark_jobs.errors import RequestError
from spark_jobs.manifests import MANIFEST, file_sha256
from training.augment_spec import TEXT_FIELD
from training.model_folder import model_class


@dataclass(frozen=True)
class Limits:
    """temperature: 0 for the model's own search. max_new_tokens: of an answer. batch_rows: texts at once."""

    temperature: float
    max_new_tokens: int
    batch_rows: int


@dataclass(frozen=True)
class Untranslated:
    """Why there is no translation: too_long (for the model to read) or unfinished (no end within max_new_tokens)."""

    reason: str


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Makes the likeliest token a sample: Gumbel noise is added to the logits, of a stream of its own for each row.

    So what is drawn for a row does not depend on the rows beside it. Source: the Gumbel-max trick.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed >> 1) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform_BV = torch.stack(
            [torch.rand(scores.shape[-1], generator=s, dtype=torch.float64) for s in self._streams]
        )
        gumbel_BV = -(-uniform_BV.clamp(min=1e-300).log()).log()
        return scores / self._temperature + gumbel_BV.to(scores)


class Translator:
    """Raises: RequestError if the folder does not hold a model of transformers that writes text, with its tokenizer."""

    def __init__(self, folder: str, prompt: str, role: str) -> None:
        path = Path(folder) / "data" if (Path(folder) / MANIFEST).is_file() else Path(folder)
        if not (path / "config.json").is_file():
            raise RequestError(f"{role} model {folder!r}: no config.json there; name the local folder of a model")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = model_class(path).from_pretrained(path, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as err:
            raise RequestError(f"{role} model {folder!r} cannot be loaded: {str(err).splitlines()[0]}") from err
        if not model.can_generate():
            raise RequestError(f"{role} model {folder!r} is a {type(model).__name__}, which does not write text")
        self.folder, self._prompt = path, prompt
        self._model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._is_causal = not model.config.is_encoder_decoder
        tokenizer.padding_side = "left" if self._is_causal else "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer: Any = tokenizer

    def digest(self) -> str:
        """sha256 over names and bytes of the folder's files, of weights and tokenizer alike."""
        files = sorted(
            p for p in self.folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".txt", ".spm")
        )
        return hashlib.sha256("".join(f"{p.name} {file_sha256(p)}\n" for p in files).encode()).hexdigest()

    def translate(self, texts: Sequence[str], seeds: Sequence[int], limits: Limits) -> list[str | Untranslated]:
        """One answer a text, in their order. Batches are of texts of like length, the longest first."""
        prompts = [self._prompt.replace(TEXT_FIELD, text) for text in texts]
        lengths = [len(ids) for ids in self._tokenizer(prompts)["input_ids"]] if prompts else []
        longest = self._longest(limits)
        answers: list[str | Untranslated] = [Untranslated("too_long")] * len(texts)
        order = sorted((i for i in range(len(texts)) if lengths[i] <= longest), key=lambda i: (-lengths[i], prompts[i]))
        for start in range(0, len(order), limits.batch_rows):
            batch = order[start : start + limits.batch_rows]
            written = self._write([prompts[i] for i in batch], [seeds[i] for i in batch], limits)
            for i, answer in zip(batch, written, strict=True):
                answers[i] = answer
        return answers

    def _longest(self, limits: Limits) -> int:
        """Tokens of a prompt that the model can read and, if it writes behind them, still answer."""
        positions = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        limit = min(int(positions), int(self._tokenizer.model_max_length))
        return limit - limits.max_new_tokens if self._is_causal else limit

    @torch.no_grad()
    def _write(self, prompts: Sequence[str], seeds: Sequence[int], limits: Limits) -> list[str | Untranslated]:
        inputs = self._tokenizer(list(prompts), return_tensors="pt", padding=True).to(self._model.device)
        search: dict[str, Any] = {}
        if limits.temperature:
            search = {
                "logits_processor": LogitsProcessorList([SeededSampling(seeds, limits.temperature)]),
                "num_beams": 1,
            }
        output_BT = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=limits.max_new_tokens,
            do_sample=False,
            **search,
        )
        new_BT = output_BT[:, inputs["input_ids"].shape[1] :] if self._is_causal else output_BT[:, 1:]
        return [self._answer(ids) for ids in new_BT.tolist()]

    def _answer(self, ids: list[int]) -> str | Untranslated:
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        if end is None:
            return Untranslated("unfinished")
        return str(self._tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
