"""What one forward of this rank takes from a batch: targets are shifted here, and a context-parallel rank's share is cut.

Shapes: B sequences, T tokens, S tokens of this rank (T / cp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.pretrain.context_parallel import gathered_places, places_of
from training.pretrain.loss import targets_of
from training.pretrain.mesh import Mesh
from training.pretrain.token_shards import Batch


@dataclass(frozen=True)
class MicroBatch:
    """tokens, positions, targets: int64 (B, S); documents: int64 (B, T), of whole sequences, because the mask needs them.

    `queries` (S,) and `keys` (T,) are the places in the sequence of this rank's tokens, and of the tokens it attends to,
    in the order they are gathered; None where the rank has whole sequences.
    """

    tokens_BS: Tensor  # noqa: N815
    positions_BS: Tensor  # noqa: N815
    targets_BS: Tensor  # noqa: N815
    documents_BT: Tensor  # noqa: N815
    queries: Tensor | None = None
    keys: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        documents = self.documents_BT if self.queries is None else self.documents_BT[:, self.queries]
        return int((documents >= 0).sum())

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        inputs = {
            "input_ids": self.tokens_BS,
            "attention_mask": self.attention_mask(),
            "position_ids": self.positions_BS,
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def attention_mask(self) -> Tensor:
        """bool (B, 1, S, T): a token sees itself and earlier tokens of its own document, nothing else.

        Padding sees padding: a row that sees nothing would be NaN.
        """
        documents = self.documents_BT
        if self.queries is None or self.keys is None:
            return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
        same_BST = documents[:, self.queries, None] == documents[:, None, self.keys]
        return (same_BST & (self.queries[:, None] >= self.keys[None, :]))[:, None]


def micro_batch_of(batch: Batch, mesh: Mesh) -> MicroBatch:
    """This rank's share of `batch`. The shift comes before the cut: the next token may lie on another rank."""
    targets_BT = targets_of(batch.labels_BT)
    if mesh.degrees.cp == 1:
        return MicroBatch(batch.tokens_BT, batch.positions_BT, targets_BT, batch.documents_BT)
    seq_len = batch.tokens_BT.shape[1]
    queries = places_of(mesh.at.cp, mesh.degrees.cp, seq_len)
    keys = gathered_places(mesh.degrees.cp, seq_len)
    tokens_BS, positions_BS, targets_BS = (p[:, queries] for p in (batch.tokens_BT, batch.positions_BT, targets_BT))
    return MicroBatch(tokens_BS, positions_BS, targets_BS, batch.documents_BT, queries, keys)


def concatenate(batches: Sequence[MicroBatch]) -> MicroBatch:
    """One micro-batch of all rows; all must come from the same mesh."""
    return MicroBatch(
        torch.cat([batch.tokens_BS for batch in batches]),
        torch.cat([batch.positions_BS for batch in batches]),
        torch.cat([batch.targets_BS for batch in batches]),
        torch.cat([batch.documents_BT for batch in batches]),
        batches[0].queries,
        batches[0].keys,
    )
