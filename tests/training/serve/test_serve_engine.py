"""Engines alone: what a row answers does not depend on its neighbours, and drawing follows the shares it is told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from training.model_folder import load_folder
from training.serve.batching import Batching, can_batch
from training.serve.generation import Engine, EngineFailed
from training.serve.sampling import Sampling
from training.serve.serial import Serial
from training.serve.serve_spec import ServeSpec

SPEC = ServeSpec(cache_tokens=1024, max_batch=8, prefill_tokens=32, max_tokens=64)
Asked = tuple[list[int], Sampling, int]


@pytest.fixture(scope="module", params=[Batching, Serial])
def engine(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Engine]:
    torch.set_num_threads(1)
    made: Engine = request.param(load_folder(tiny), (2,), SPEC)
    yield made
    made.close()
    assert not made.is_alive()


def written(engine: Engine, asked: list[Asked], every_token: bool = False) -> list[list[int]]:
    async def one(prompt: list[int], sampling: Sampling, wanted: int) -> list[int]:
        generation = engine.start(prompt, sampling, wanted, every_token)
        return [token async for step in generation.steps() for token in step]

    async def all_at_once() -> list[list[int]]:
        return await asyncio.gather(*(one(*each) for each in asked))

    return asyncio.run(all_at_once())


def test_greedy_answers_equal_plain_generate_whoever_is_beside(engine: Engine, greedy: Any) -> None:
    prompts = [
        greedy.ids(text) for text in ("rye", "the mill grinds new flour. " * 4, "水", "a night waits for old stones.")
    ]
    asked = [(prompt, Sampling(), 6 + 3 * place) for place, prompt in enumerate(prompts)]
    drawn = [([1, 40 + place], Sampling(temperature=1.0, seed=place), 12) for place in range(4)]
    found = written(engine, [*asked, *drawn])
    assert found[:4] == [greedy.continued(prompt, wanted) for prompt, _, wanted in asked]
    again = written(engine, [([1, 42], Sampling(temperature=1.0, seed=2), 12)], every_token=True)
    assert again[0] == found[6]


def test_drawn_tokens_have_the_models_shares(engine: Engine, greedy: Any) -> None:
    """First tokens of 400 draws at temperature 2 against softmax(logits / 2), and none outside top_p."""
    row = greedy.logprobs([1, 50])[-1].double()
    shares = (row / 2).softmax(-1)
    asked = [([1, 50], Sampling(temperature=2.0, seed=seed), 1) for seed in range(400)]
    counts = Counter(tokens[0] for tokens in written(engine, asked))
    for token in shares.topk(4).indices.tolist():
        share = float(shares[token])
        assert abs(counts[token] / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5
    order = row.softmax(-1).sort(descending=True)
    kept = set(order.indices[: int((order.values.cumsum(-1) < 0.5).sum()) + 1].tolist())
    narrow = written(engine, [([1, 50], Sampling(temperature=1.0, top_p=0.5, seed=seed), 1) for seed in range(60)])
    assert {tokens[0] for tokens in narrow} <= kept


def test_answer_given_up_makes_room_and_others_go_on(engine: Engine, greedy: Any) -> None:
    async def story() -> list[int]:
        given_up = engine.start([1, 60], Sampling(), 60, every_token=True)
        await anext(given_up.steps())
        given_up.give_up()
        kept = engine.start([1, 61], Sampling(), 10, every_token=False)
        return [token async for step in kept.steps() for token in step]

    for _ in range(3):
        assert asyncio.run(story()) == greedy.continued([1, 61], 10)


def test_closed_engine_takes_nothing(tiny: Path) -> None:
    for kind in (Batching, Serial):
        engine = kind(load_folder(tiny), (2,), SPEC)
        engine.close()

        async def ask(engine: Engine = engine) -> None:
            engine.start([1, 5], Sampling(), 2, every_token=False)

        with pytest.raises(EngineFailed):
            asyncio.run(ask())


def test_encoder_decoder_is_served_one_by_one(greedy: Any) -> None:
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=300, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    assert not can_batch(model)
    assert can_batch(greedy.model)
    prompt = torch.tensor([[5, 9, 30]])
    wanted = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=7, do_sample=False)[
        0, 1:
    ].tolist()
    engine = Serial(model, (2,), SPEC)
    try:
        assert written(engine, [([5, 9, 30], Sampling(), 7)]) == [wanted]
    finally:
        engine.close()
