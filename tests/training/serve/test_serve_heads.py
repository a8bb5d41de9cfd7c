"""Models that classify or embed, through the whole application in this process."""

from __future__ import annotations

import asyncio
import base64
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from openai.types import CreateEmbeddingResponse
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from training.serve.app import Surroundings, build_app
from training.serve.heads import kind_of
from training.serve.hub import Hub
from training.serve.measures import Measures
from training.serve.serve_spec import ServeSpec
from training.serve.served import identity_of_folder, load

TEXTS = ["the mill grinds", "naïve grain 水", "rye"]
LABELS = {0: "bread", 1: "beer", 2: "none"}


def folder_of(kind: Any, root: Path, world: Any, **fields: Any) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=world.tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5, pad_token_id=0, **fields,
    )  # fmt: skip
    kind(config).eval().save_pretrained(root)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(world.tokenizer.folder()) / name, root / name)
    return root


def asked(folder: Path, path: str, **body: Any) -> httpx.Response:
    async def story() -> httpx.Response:
        spec = ServeSpec(max_inputs=4)
        served = load(folder, identity_of_folder(folder, "head"), spec)
        hub = Hub(served, 8)
        app = build_app(hub, spec, Surroundings(), Measures(), None)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return await client.post(path, json={"model": "head"} | body)

    return asyncio.run(story())


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_embedding_is_the_mean_of_the_last_layer_at_length_one(tmp_path: Path, world: Any, kind: Any) -> None:
    folder = folder_of(kind, tmp_path, world)
    answer = asked(folder, "/v1/embeddings", input=TEXTS)
    told = CreateEmbeddingResponse.model_validate(answer.raise_for_status().json())
    model, tokenizer = BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for entry, text in zip(told.data, TEXTS, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0)
        assert entry.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert told.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    packed = asked(folder, "/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), np.float32) == pytest.approx(told.data[0].embedding)


def test_classes_have_shares_that_add_up(tmp_path: Path, world: Any) -> None:
    folder = folder_of(
        BertForSequenceClassification, tmp_path, world, id2label=LABELS, problem_type="single_label_classification"
    )
    told = asked(folder, "/v1/classifications", input=TEXTS).json()
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    for entry, text in zip(told["data"], TEXTS, strict=True):
        with torch.no_grad():
            shares = model(torch.tensor([tokenizer.encode(text)])).logits[0].softmax(-1)
        assert entry["probs"] == pytest.approx(shares.tolist(), abs=1e-5)
        assert entry["label"] == LABELS[int(shares.argmax())]
    assert told["model"] == "head"
    assert told["system_fingerprint"].startswith("fp_")


def test_several_labels_and_numbers_are_told_as_such(tmp_path: Path, world: Any) -> None:
    several = folder_of(
        BertForSequenceClassification, tmp_path / "several", world, id2label=LABELS,
        problem_type="multi_label_classification",
    )  # fmt: skip
    entry = asked(several, "/v1/classifications", input="rye").json()["data"][0]
    assert entry["labels"] == [LABELS[i] for i, share in enumerate(entry["probs"]) if share > 0.5]
    number = folder_of(
        BertForSequenceClassification, tmp_path / "number", world, num_labels=1, problem_type="regression",
        value_mean=100.0, value_deviation=10.0,
    )  # fmt: skip
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(number).eval(),
        AutoTokenizer.from_pretrained(number),
    )
    with torch.no_grad():
        logit = float(model(torch.tensor([tokenizer.encode("rye")])).logits)
    value = asked(number, "/v1/classifications", input="rye").json()["data"][0]["value"]
    assert value == pytest.approx(100 + 10 * logit, abs=1e-3)


def test_wrong_route_for_a_head_is_named(tmp_path: Path, world: Any) -> None:
    folder = folder_of(BertModel, tmp_path, world)
    answer = asked(folder, "/v1/completions", prompt="x")
    assert answer.status_code == 400
    assert "/v1/embeddings" in answer.json()["error"]["message"]
    assert asked(folder, "/v1/classifications", input="x").status_code == 400
    assert asked(folder, "/v1/embeddings", input=["x"] * 5).status_code == 400
    assert asked(folder, "/v1/embeddings", input="x" * 500).json()["error"]["code"] == "context_length_exceeded"


def test_kinds_by_the_class_that_was_saved(greedy: Any) -> None:
    assert kind_of(greedy.model) == "generation"
