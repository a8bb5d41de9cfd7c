"""Long inputs as overlapping windows of tokens, each of which a model can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

Offset = tuple[int, int]  # characters, end not included


@dataclass(frozen=True)
class Window:
    """features: input_ids and, where the tokenizer has them, token_type_ids. offsets: for each token its characters in the
    text that is windowed; None for special tokens, tokens of another text, and tokens of no character."""

    features: dict[str, Any]
    offsets: Sequence[Offset | None]


def cut_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, windowed: str | None, max_length: int, stride: int
) -> list[Window]:
    """Windows of `text`, or, if there is one, of `windowed`, each with the whole of `text` before it.

    stride: tokens that a window shares with the one before it; at most half of what is free in it, so that windows move on.
    `text` before `windowed` must leave room in max_length. Windows without a token of the windowed text are left out.
    """
    around = tokenizer.num_special_tokens_to_add(pair=windowed is not None)
    if windowed is not None:
        around += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    encoded = tokenizer(
        text, windowed, truncation="only_first" if windowed is None else "only_second", max_length=max_length,
        stride=max(0, min(stride, (max_length - around) // 2)), return_overflowing_tokens=True,
        return_offsets_mapping=True, return_attention_mask=False,
    )  # fmt: skip
    wanted = 0 if windowed is None else 1
    windows = []
    for number, ids in enumerate(encoded["input_ids"]):
        features = {name: encoded[name][number] for name in ("token_type_ids",) if name in encoded}
        offsets = [
            (int(start), int(end)) if part == wanted and end > start else None
            for part, (start, end) in zip(encoded.sequence_ids(number), encoded["offset_mapping"][number], strict=True)
        ]
        if any(offset is not None for offset in offsets):
            windows.append(Window({"input_ids": ids} | features, offsets))
    return windows
