"""What a model is asked to predict of a packed batch: the next token, masked tokens, or the rest of each document.

What is masked, and where a document is divided, is a pure function of seed and position in the data stream (which
counts on over epochs), so any number of ranks and a resumed run see the same.
Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spark_jobs.manifests import TokenizerFiles
from training.pretrain.loss import IGNORED
from training.pretrain.mesh import Mesh
from training.pretrain.micro_batch import micro_batch_of
from training.pretrain.token_shards import Batch, Sequences, count_tokens, same_document
from training.specs import TrainSpec

MASK_SALT, SPLIT_SALT = 2, 3  # their draws do not disturb those of the order
REPLACED, SWAPPED = (
    0.8,
    0.1,
)  # of the chosen tokens: become the mask, become any token; the rest stay (arXiv:1810.04805)


class Inputs(Protocol):
    """What one forward pass takes, and what it must predict."""

    @property
    def targets_BS(self) -> Tensor: ...  # noqa: N802

    @property
    def num_tokens(self) -> int: ...

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class MaskedInputs:
    """tokens, positions, targets (IGNORED where nothing was chosen), documents: int64 (B, T)."""

    tokens_BT: Tensor  # noqa: N815
    positions_BT: Tensor  # noqa: N815
    targets_BS: Tensor  # noqa: N815
    documents_BT: Tensor  # noqa: N815

    @property
    def num_tokens(self) -> int:
        return count_tokens(self.documents_BT)

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """A token sees all of its own document."""
        inputs = {
            "input_ids": self.tokens_BT,
            "attention_mask": same_document(self.documents_BT)[:, None],
            "position_ids": self.positions_BT,
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}


@dataclass(frozen=True)
class DividedInputs:
    """source, decoder_inputs, targets, documents: int64 (B, T); source_seen: bool (B, T).

    A document has the same places on both sides: its first part stands at their start for the encoder, the rest for the
    decoder. So one block-diagonal mask serves the encoder and the decoder's look at it.
    """

    source_BT: Tensor  # noqa: N815
    source_seen_BT: Tensor  # noqa: N815
    decoder_inputs_BT: Tensor  # noqa: N815
    targets_BS: Tensor  # noqa: N815
    documents_BT: Tensor  # noqa: N815

    @property
    def num_tokens(self) -> int:
        return count_tokens(self.documents_BT)

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        same_BTT = same_document(self.documents_BT)
        padding_BT = self.documents_BT < 0  # sees padding: a row that sees nothing would be NaN
        seen_BTT = same_BTT & (self.source_seen_BT | padding_BT)[:, None, :]
        inputs = {
            "input_ids": self.source_BT,
            "attention_mask": seen_BTT[:, None],
            "decoder_input_ids": self.decoder_inputs_BT,
            "decoder_attention_mask": same_BTT.tril()[:, None],
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}


@dataclass(frozen=True)
class Examples:
    """Inputs of a batch under the spec's objective. The tokenizers have no token for masks: padding's stands for it,
    which is never read otherwise."""

    spec: TrainSpec
    mesh: Mesh
    tokenizer: TokenizerFiles

    def of(self, batch: Batch, positions: Sequence[int]) -> Inputs:
        """`positions` of the batch's rows in the data stream."""
        tokenizer = self.tokenizer
        match self.spec.objective:
            case "causal_lm":
                return micro_batch_of(batch, self.mesh)
            case "masked_lm":
                return masked_inputs(batch, positions, tokenizer.vocab_size, tokenizer.pad_id, self.spec)
            case "seq2seq_lm":
                return divided_inputs(batch, positions, tokenizer.bos_id, tokenizer.pad_id, self.spec)


@dataclass(frozen=True)
class PackedText:
    """Packed sequences as what the trainer reads: the data stream, what is asked of it, and held-out sequences."""

    sequences: Sequences
    examples: Examples
    heldout_batches: Sequence[Batch] = ()

    @property
    def heldout(self) -> list[Inputs]:
        return [self.examples.of(batch, range(len(batch.tokens_BT))) for batch in self.heldout_batches]

    def micro_batches(self, positions: Sequence[int], size: int) -> list[Inputs]:
        batches = self.sequences.micro_batches(positions, size)
        return [self.examples.of(batch, positions[i * size : (i + 1) * size]) for i, batch in enumerate(batches)]


def masked_inputs(
    batch: Batch, positions: Sequence[int], vocab_size: int, mask_id: int, spec: TrainSpec
) -> MaskedInputs:
    """Choose mask_share of the tokens, but no first token of a document, and hide most of them.

    positions: of the batch's rows in the data stream.
    """
    tokens: np.ndarray = batch.tokens_BT.numpy().copy()
    labels: np.ndarray = batch.labels_BT.numpy()
    targets = np.full_like(tokens, IGNORED)
    for row, position in enumerate(positions):
        draws = np.random.default_rng([MASK_SALT, spec.seed, position])
        chosen = (draws.random(tokens.shape[1]) < spec.mask_share) & (labels[row] != IGNORED)
        fate = draws.random(tokens.shape[1])
        others: np.ndarray = draws.integers(0, vocab_size, size=(tokens.shape[1],))
        targets[row, chosen] = tokens[row, chosen]
        tokens[row, chosen & (fate < REPLACED)] = mask_id
        swapped = chosen & (fate >= REPLACED) & (fate < REPLACED + SWAPPED)
        tokens[row, swapped] = others[swapped]
    return MaskedInputs(torch.from_numpy(tokens), batch.positions_BT, torch.from_numpy(targets), batch.documents_BT)


def divided_inputs(
    batch: Batch, positions: Sequence[int], start_id: int, pad_id: int, spec: TrainSpec
) -> DividedInputs:
    """Divide each document at a place of its own: the encoder reads up to it, the decoder writes from it (prefix
    language model, arXiv:1910.10683 section 3.2.1). A document of one token has nothing to predict.
    """
    tokens: np.ndarray = np.asarray(batch.tokens_BT)
    documents: np.ndarray = batch.documents_BT.numpy()
    source, seen = np.full_like(tokens, pad_id), np.zeros(tokens.shape, bool)
    decoder_inputs, targets = np.full_like(tokens, pad_id), np.full_like(tokens, IGNORED)
    for row, position in enumerate(positions):
        draws = np.random.default_rng([SPLIT_SALT, spec.seed, position])
        _, starts, sizes = np.unique(documents[row], return_index=True, return_counts=True)
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            if documents[row, start] < 0 or size < 2:
                continue
            split = int(draws.integers(1, size))
            rest = slice(start, start + size - split)
            source[row, start : start + split] = tokens[row, start : start + split]
            seen[row, start : start + split] = True
            targets[row, rest] = tokens[row, start + split : start + size]
            decoder_inputs[row, rest] = [start_id, *tokens[row, start + split : start + size - 1].tolist()]
    sides = [torch.from_numpy(array) for array in (source, seen, decoder_inputs, targets)]
    return DividedInputs(sides[0], sides[1], sides[2], sides[3], batch.documents_BT)
