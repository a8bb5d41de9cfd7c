"""What is computed again gives the same numbers, and less is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.parity import Layout, on_ranks, tiny_llama, train
from training.pretrain.activation_checkpointing import checkpoint_activations


class AliveStorages(TorchDispatchMode):
    """Bytes of every tensor made inside that is still held by someone."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return results

    @property
    def alive(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


def loss_gradients_and_kept_bytes(mode: Any) -> tuple[Tensor, list[Tensor], int]:
    model = tiny_llama(tied=False)
    checkpoint_activations(model, mode)
    tokens = torch.randint(3, 60, (4, 32), generator=torch.Generator().manual_seed(0))
    with AliveStorages() as storages:
        loss = model(input_ids=tokens).logits.logsumexp(-1).sum()
        kept = storages.alive
    torch.autograd.backward(loss)
    assert set(dict(model.named_parameters())) == set(dict(tiny_llama(tied=False).named_parameters()))
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], kept


def test_computed_again_gives_the_same_bits_and_keeps_less() -> None:
    loss, gradients, kept = loss_gradients_and_kept_bytes("none")
    sizes = {"none": kept}
    for mode in ("selective", "full"):
        again, found, sizes[mode] = loss_gradients_and_kept_bytes(mode)
        assert torch.equal(again, loss)
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))
    assert sizes["full"] < sizes["selective"] < sizes["none"]
    assert sizes["full"] < 0.5 * sizes["none"]


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("parallel", [{"tp": 2}, {"pp": 2}, {"cp": 2}, {}], ids=["TP", "PP", "CP", "FSDP2"])
def test_computing_again_changes_no_layout(parallel: dict[str, Any], mode: str) -> None:
    def curve(ranks: Any, extra: dict[str, Any]) -> Any:
        return train(Layout("", 2, parallel | extra), ranks, False, 2)["curve"]

    plain, again = (
        on_ranks(lambda ranks, extra=extra: curve(ranks, extra), 2)[0]
        for extra in ({}, {"activation_checkpointing": mode})
    )
    for one, other in zip(plain, again, strict=True):
        assert other == pytest.approx(one, rel=1e-13)
