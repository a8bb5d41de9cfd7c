"""Masked and encoder-decoder objectives: what is hidden, what is predicted, and that packed documents do not leak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spark_jobs.errors import RequestError
from training.pretrain.loss import IGNORED
from training.pretrain.model import model_config, new_model
from training.pretrain.objectives import divided_inputs, masked_inputs
from training.pretrain.token_shards import Batch, make_batch
from training.specs import ModelSpec, TrainSpec

V, MASK, BOS, PAD = 50, 0, 1, 0
SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 24}


def rows(lengths: list[list[int]], seq_len: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    parts = []
    for row in lengths:
        documents = [np.concatenate(([BOS], rng.integers(3, V, n - 1))) for n in row]
        parts.append((np.concatenate(documents).astype(np.int32), np.array(row, np.int32)))
    return make_batch(parts, seq_len, PAD)


def test_masked_tokens_are_one_in_seven_and_eight_in_ten_of_them_hidden() -> None:
    batch = rows([[256] * 16] * 8, 4096)
    inputs = masked_inputs(batch, range(8), V, MASK, TrainSpec())
    chosen = inputs.targets_BS != IGNORED
    assert float(chosen.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(inputs.targets_BS[chosen], batch.tokens_BT[chosen])
    assert torch.equal(inputs.tokens_BT[~chosen], batch.tokens_BT[~chosen])
    assert not chosen[batch.positions_BT == 0].any()
    hidden = inputs.tokens_BT[chosen] == MASK
    same = inputs.tokens_BT[chosen] == batch.tokens_BT[chosen]
    assert float(hidden.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(same.float().mean()) == pytest.approx(0.1, abs=0.03)


def test_masks_depend_on_seed_and_position_alone() -> None:
    batch = rows([[20, 12]] * 3, 32)
    whole = masked_inputs(batch, [7, 8, 9], V, MASK, TrainSpec())
    parts = Batch(*(t[1:2] for t in (batch.tokens_BT, batch.positions_BT, batch.labels_BT, batch.documents_BT)))
    alone = masked_inputs(parts, [8], V, MASK, TrainSpec())
    assert torch.equal(alone.tokens_BT[0], whole.tokens_BT[1])
    assert not torch.equal(whole.targets_BS[0], whole.targets_BS[1])
    other = masked_inputs(batch, [7, 8, 9], V, MASK, TrainSpec(seed=1))
    assert not torch.equal(other.targets_BS, whole.targets_BS)


def test_divided_documents_are_read_up_to_a_place_and_written_from_it() -> None:
    batch = rows([[6, 1, 9]], 20)
    inputs = divided_inputs(batch, [3], BOS, PAD, TrainSpec())
    for start, size in ((0, 6), (7, 9)):
        document = batch.tokens_BT[0, start : start + size].tolist()
        place = slice(start, start + size)
        read = inputs.source_BT[0, place][inputs.source_seen_BT[0, place]].tolist()
        written = [t for t in inputs.targets_BS[0, place].tolist() if t != IGNORED]
        assert read + written == document
        assert 1 <= len(read) < size
        assert inputs.decoder_inputs_BT[0, start : start + len(written)].tolist() == [BOS, *written[:-1]]
    outside = torch.ones(20, dtype=torch.bool)
    outside[:6] = outside[7:16] = False
    assert (inputs.targets_BS[0, outside] == IGNORED).all()
    assert not inputs.source_seen_BT[0, outside].any()


def inputs_of(objective: str, batch: Batch) -> Any:
    if objective == "masked_lm":
        return masked_inputs(batch, range(len(batch.tokens_BT)), V, MASK, TrainSpec(mask_share=0.3))
    return divided_inputs(batch, range(len(batch.tokens_BT)), BOS, PAD, TrainSpec())


def logits_of(model: Any, objective: str, batch: Batch) -> torch.Tensor:
    if objective == "causal_lm":
        return model(
            input_ids=batch.tokens_BT, attention_mask=batch.attention_mask(), position_ids=batch.positions_BT
        ).logits
    return model(**inputs_of(objective, batch).model_inputs(torch.device("cpu"))).logits


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [
        ("llama", "causal_lm"),
        ("gpt2", "causal_lm"),
        ("gpt_neox", "causal_lm"),
        ("qwen3", "causal_lm"),
        ("bert", "masked_lm"),
        ("t5", "seq2seq_lm"),
    ],
)
def test_packed_documents_do_not_see_one_another(world, architecture: str, objective: str) -> None:
    """Other tokens in document 0 move its own logits and none of document 1."""
    spec = ModelSpec.model_validate(SMALL | {"architecture": architecture})
    model = new_model(model_config(spec, world.tokenizer, 16), 0, objective).eval()
    batch = rows([[7, 8]], 16)
    changed = batch.tokens_BT.clone()
    changed[0, 1:7] = (changed[0, 1:7] + 5) % V
    other = Batch(changed, batch.positions_BT, batch.labels_BT, batch.documents_BT)
    with torch.no_grad():
        before, after = (logits_of(model, objective, b)[0] for b in (batch, other))
    assert torch.isfinite(before).all()
    assert torch.equal(before[7:15], after[7:15])
    assert not torch.allclose(before[:7], after[:7])


@pytest.mark.parametrize(("architecture", "objective"), [("bert", "masked_lm"), ("t5", "seq2seq_lm")])
def test_document_in_a_pack_gets_the_logits_it_gets_alone(world, architecture: str, objective: str) -> None:
    """Positions, masks and the decoder's look at the encoder are those of the document by itself."""
    spec = ModelSpec.model_validate(SMALL | {"architecture": architecture})
    model = new_model(model_config(spec, world.tokenizer, 16), 0, objective).eval()
    packed = rows([[7, 8]], 16)
    inputs = inputs_of(objective, packed).model_inputs(torch.device("cpu"))
    alone = {}
    for name, tensor in inputs.items():
        alone[name] = tensor[:, :, 7:15, 7:15] if tensor.ndim == 4 else tensor[:, 7:15]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[0, 7:15], model(**alone).logits[0], atol=1e-5, rtol=1e-5)


def test_dropout_of_every_layer_is_the_one_asked_for(world) -> None:
    for architecture in ("llama", "gpt2", "bert", "t5"):
        spec = ModelSpec.model_validate(SMALL | {"architecture": architecture, "dropout": 0.25})
        config = model_config(spec, world.tokenizer, 16)
        found = {name: value for name, value in vars(config).items() if "pdrop" in name or "dropout" in name}
        rates = {name: rate for name, rate in found.items() if not name.startswith(("classifier", "summary"))}
        assert rates
        assert set(rates.values()) == {0.25}


def test_overrides_reach_the_configuration(world) -> None:
    spec = ModelSpec.model_validate(SMALL | {"architecture": "t5", "overrides": {"feed_forward_proj": "gated-gelu"}})
    config = model_config(spec, world.tokenizer, 16)
    assert (config.is_gated_act, config.d_model, config.d_ff, config.d_kv) == (True, 16, 24, 8)


@pytest.mark.parametrize(
    ("fields", "objective", "message"),
    [
        ({"architecture": "llamma"}, "causal_lm", r"architecture 'llamma': .*near: llama"),
        ({"overrides": {"rope_tetha": 1.0}}, "causal_lm", r"a llama has no rope_tetha"),
        ({"architecture": "t5"}, "causal_lm", r"objective causal_lm: .* architecture t5"),
        ({"architecture": "bloom"}, "causal_lm", r"bloom: it cannot be told where packed documents begin"),
        ({"architecture": "roberta"}, "masked_lm", r"roberta: its positions do not start at 0"),
    ],
)
def test_architecture_that_cannot_be_trained_is_refused(world, fields: Any, objective: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        new_model(model_config(ModelSpec.model_validate(SMALL | fields), world.tokenizer, 16), 0, objective)
