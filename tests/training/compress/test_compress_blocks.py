"""Blocks of real small transformers, and what they are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from spark_jobs.errors import RequestError
from training.compress import blocks
from training.compress.blocks import Block, batches_of, blocks_of, first_block
from training.compress.layers import prunable_layers, set_weight, weight_OI
from training.compress.sequential import over_blocks

torch.set_num_threads(1)

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=4, n_positions=64))


def bert() -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**SMALL, max_position_embeddings=64))


def gemma3() -> PreTrainedModel:
    """Blocks differ in mask and in position embeddings."""
    config = Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=4, max_position_embeddings=64, sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


FAMILIES = {"llama": llama, "gpt2": gpt2, "bert": bert, "gemma3": gemma3}


def made(family: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    return family().eval()


def outputs_of_blocks(model: PreTrainedModel, tokens_BT: torch.Tensor) -> list[torch.Tensor]:
    """Of a plain forward of the whole model."""
    seen: list[torch.Tensor] = []
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append(out)) for m in blocks_of(model).values()]
    with torch.no_grad():
        model(input_ids=tokens_BT)
    for hook in hooks:
        hook.remove()
    return [out[0] if isinstance(out, tuple) else out for out in seen]


def tokens(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize(
    ("family", "first", "layers"),
    [
        ("llama", "model.layers.0", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("gpt2", "transformer.h.0", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        ("bert", "bert.encoder.layer.0", ["attention.self.query", "attention.self.key", "attention.self.value",
                                          "attention.output.dense", "intermediate.dense", "output.dense"]),
    ],
)  # fmt: skip
def test_blocks_of_a_family_are_found_by_name_with_their_matrices(family: str, first: str, layers: list[str]) -> None:
    found = blocks_of(made(FAMILIES[family]))
    assert next(iter(found)) == first
    assert len(found) == 3
    assert list(prunable_layers(found[first])) == layers


def test_blocks_of_models_that_are_no_single_stack_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="T5ForConditionalGeneration cannot be compressed"):
        blocks_of(
            T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4))
        )
    experts = MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2))
    with pytest.raises(RequestError, match=r"MixtralForCausalLM cannot be compressed: model\.layers\.0\.mlp\.experts"):
        blocks_of(experts)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_run_one_by_one_untouched_give_the_hidden_states_of_the_model(family: str) -> None:
    """Every block's inputs are what the whole model has there for the same batch, to the last bit."""
    model, sequences = made(FAMILIES[family]), tokens(12, 7, 12)
    before: list[list[torch.Tensor]] = []
    behind: list[list[torch.Tensor]] = []

    def treat(block: Block) -> list[list[int]]:
        before.append(list(block.inputs))
        behind.append(block.run())
        return block.rows

    rows = over_blocks(model, sequences, treat)
    assert rows == [[[0, 2], [1]]] * 3
    for batch, members in enumerate(rows[0]):
        for k, outputs in enumerate(outputs_of_blocks(model, torch.stack([sequences[i] for i in members]))):
            assert torch.equal(behind[k][batch], outputs)
            if k + 1 < 3:
                assert torch.equal(before[k + 1][batch], outputs)


def test_blocks_called_alike_are_reached_by_one_whole_forward_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block runs once to see that Llama's are; where they differ, for each of four batches too."""
    monkeypatch.setattr(blocks, "BATCH_TOKENS", 8)
    for family, wanted in ((llama, 1), (gemma3, 5)):
        model, runs = made(family), []
        *_, last = blocks_of(model).values()
        hook = last.register_forward_hook(lambda module, args, out, runs=runs: runs.append(1))
        first_block(model, tokens(8, 8, 8, 8))
        hook.remove()
        assert len(runs) == wanted


def test_statistics_of_two_lengths_count_real_tokens_and_equal_the_rows_alone() -> None:
    """A row of 8 tokens and one of 2 are 10 tokens, not 16."""
    model, sequences = made(llama), tokens(8, 2)

    def measured(rows: list[torch.Tensor]) -> dict[str, Any]:
        return over_blocks(model, rows, lambda block: block.statistics(block.layers))[0]

    together, one, other = measured(sequences), measured(sequences[:1]), measured(sequences[1:])
    for name, sums in together.items():
        assert sums.num_tokens == 10
        torch.testing.assert_close(sums.gram_II, one[name].gram_II + other[name].gram_II, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums.abs_sum_I, one[name].abs_sum_I + other[name].abs_sum_I)
        assert torch.equal(sums.abs_max_I, torch.maximum(one[name].abs_max_I, other[name].abs_max_I))


def test_statistics_are_the_sums_over_the_inputs_of_each_layer() -> None:
    model, sequences = made(llama), tokens(9, 9, 5)
    seen: dict[str, list[torch.Tensor]] = {}

    def treat(block: Block) -> dict[str, Any]:
        block.visit(block.layers, lambda name, x: seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).double()))
        return block.statistics(block.layers)

    sums, *_ = over_blocks(model, sequences, treat)
    assert len(seen) == len(sums) == 7
    for name, parts in list(seen.items())[:7]:
        inputs = torch.cat(parts[:2]).double()
        torch.testing.assert_close(sums[name].gram_II.double(), inputs.T @ inputs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums[name].norm_I.double(), inputs.norm(dim=0), rtol=1e-5, atol=1e-6)
    assert sums["self_attn.q_proj"] is sums["self_attn.k_proj"]
    assert sums["self_attn.q_proj"] is not sums["self_attn.o_proj"]


def test_a_changed_block_changes_what_the_next_one_sees() -> None:
    model, sequences = made(llama), tokens(6)
    untouched = over_blocks(model, sequences, lambda block: block.inputs[0].clone())

    def zero_first(block: Block) -> torch.Tensor:
        seen = block.inputs[0].clone()
        if block.name == "model.layers.0":
            for module in block.layers.values():
                set_weight(module, torch.zeros_like(weight_OI(module)))
        return seen

    treated = over_blocks(model, sequences, zero_first)
    assert torch.equal(treated[0], untouched[0])
    assert torch.equal(treated[1], treated[0]), "a block of zeros hands its input on"
    assert not torch.equal(untouched[1], treated[1])


def test_blocks_without_sequences_come_without_inputs() -> None:
    model = made(gpt2)
    assert over_blocks(model, [], lambda block: (block.name, len(block.inputs))) == [
        (f"transformer.h.{k}", 0) for k in range(3)
    ]


def test_sequences_of_equal_length_share_batches_up_to_the_limit() -> None:
    lengths = [4, 3000, 4, 1024, 1024, 1024]
    assert batches_of([torch.zeros(n, dtype=torch.int64) for n in lengths]) == [[0, 2], [1], [3, 4], [5]]


def test_weight_of_either_kind_of_matrix_is_outputs_by_inputs() -> None:
    for family, name in ((llama, "mlp.gate_proj"), (gpt2, "mlp.c_fc")):
        module = next(iter(blocks_of(made(family).to(torch.bfloat16)).values())).get_submodule(name)
        weight = weight_OI(module)
        assert weight.dtype == torch.float32
        assert weight.shape[1] == 16
        inputs = torch.randn(5, 16)
        outputs = module(inputs.bfloat16()).float()
        torch.testing.assert_close(
            outputs,
            inputs.bfloat16().float() @ weight.T + (0 if module.bias is None else module.bias.float()),
            rtol=0.02,
            atol=0.01,
        )
        set_weight(module, weight * 2)
        assert torch.equal(weight_OI(module), weight * 2)
