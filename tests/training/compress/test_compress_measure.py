"""Speed, memory and energy of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from spark_jobs.errors import RequestError
from training.compress.measure import energy, fitting, joules_between, measure_folder, read_prompt, write_tokens
from training.compress_spec import MeasureSpec
from training.manifests import Measurement, ModelFolder
from training.processes import in_fresh_process

if TYPE_CHECKING:
    from tests.training.conftest import Engine

torch.set_num_threads(1)
SPEC = MeasureSpec(prompt_tokens=16, new_tokens=4, repeats=3)


def tiny_llama(**fields: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, **fields,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_folder_is_measured_with_every_repeat_and_stated_threads(tmp_path: Path) -> None:
    tiny_llama(eos_token_id=list(range(50))).save_pretrained(tmp_path)  # every token ends a text: writing goes on
    found = in_fresh_process(lambda: measure_folder(tmp_path, SPEC, threads=1))
    assert found["num_threads"] == 1
    assert (found["prompt_tokens"], found["new_tokens"]) == (16, 4)
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert len(found[name]["repeats"]) == SPEC.repeats
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
    assert found["weight_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["peak_bytes"] > found["storage_bytes"] > 0


def test_measure_job_keeps_medians_in_the_handle_and_every_repeat_in_the_file(engine: Engine, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "tiny")
    imported = tmp_path / "models" / "import-0001"
    model = engine.run(ModelFolder, "import-model", {"path": str(tmp_path / "tiny")}, imported)
    found = engine.run(Measurement, "measure", SPEC.model_dump(), tmp_path / "measurements" / "m-0001", model=model.uri)
    told = json.loads((Path(found.folder()) / "measurement.json").read_text())
    assert found.model == told["model"] == model.address
    assert found.weight_bytes == model.weight_bytes == told["weight_bytes"]
    assert found.decode_tokens_per_s == sorted(told["decode_tokens_per_s"]["repeats"])[1]
    assert found.prefill_tokens_per_s == sorted(told["prefill_tokens_per_s"]["repeats"])[1]
    assert (found.num_rows, found.num_threads, found.peak_bytes) == (3, told["num_threads"], told["peak_bytes"])


@pytest.mark.parametrize(("positions", "prompt"), [(64, (16, 4)), (18, (14, 4)), (4, (2, 2)), (2, (1, 1))])
def test_prompt_and_writing_are_shortened_to_the_positions_there_are(positions: int, prompt: tuple[int, int]) -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = positions
    assert fitting(model, SPEC) == prompt


def test_model_that_continues_no_text_is_refused() -> None:
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(RequestError, match="BertForMaskedLM continues no text"):
        fitting(BertForMaskedLM(config), SPEC)


def counters(root: Path, **zones: tuple[int, int]) -> Path:
    for name, (counter, limit) in zones.items():
        zone = root / name.replace("_", ":")
        zone.mkdir(exist_ok=True, parents=True)
        (zone / "energy_uj").write_text(f"{counter}\n")
        (zone / "max_energy_range_uj").write_text(f"{limit}\n")
    return root


def test_energy_is_summed_over_processors_once_and_goes_on_behind_the_counters_range(tmp_path: Path) -> None:
    """A part (second number) lies inside its processor and is not added."""
    zones = {"intel-rapl_0": (5_000_000, 9_999_999), "intel-rapl_1": (9_000_000, 9_999_999), "intel-rapl_0_0": (1, 9)}
    before = energy(counters(tmp_path, **zones))
    zones |= {"intel-rapl_0": (7_000_000, 9_999_999), "intel-rapl_1": (500_000, 9_999_999), "intel-rapl_0_0": (8, 9)}
    assert joules_between(before, energy(counters(tmp_path, **zones))) == pytest.approx(2.0 + 1.5)


def test_machine_without_energy_counters_says_none(tmp_path: Path) -> None:
    assert energy(tmp_path) == {}
    assert joules_between({}, {}) is None


def test_tokens_are_written_behind_what_was_read_not_anew() -> None:
    """Each step after the prompt sees one token; its positions go on."""
    model, seen = tiny_llama(), []
    model.register_forward_pre_hook(
        lambda module, args, told: seen.append(told["input_ids"].shape[1]), with_kwargs=True
    )
    write_tokens(model, torch.arange(7)[None], 3)
    assert seen == [7, 1, 1, 1]
    with torch.no_grad():
        whole = model(input_ids=torch.arange(7)[None]).logits[:, -1:].argmax(-1)
        steps = read_prompt(model, torch.arange(7)[None])
    assert torch.equal(steps.logits.argmax(-1), whole)
    assert steps.cache.get_seq_length() == 7
