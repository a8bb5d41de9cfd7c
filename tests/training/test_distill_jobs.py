"""Language models that learn from a teacher through the train job: a folder, and one that is served over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM

from spark_jobs.errors import RequestError, TrainingError
from training.distill.divergence import sum_divergence
from training.distill.served import KEY, URL, ServedTeacher, token_names
from training.distill.told_text import ToldBatch, told_loss
from training.distill_spec import DistillSpec
from training.manifests import Checkpoint, ModelFolder
from training.pretrain.loss import IGNORED, targets_of
from training.pretrain.micro_batch import MicroBatch

TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 24}
SPEC: dict[str, Any] = {"model": TINY, "ranks": 1, "num_steps": 3, "sequences_per_step": 4, "micro_batch": 2}


@pytest.fixture(scope="module")
def teacher(world, engine, tmp_path_factory) -> ModelFolder:
    """A model of the world's vocabulary, of other width and depth than the students."""
    root = tmp_path_factory.mktemp("teacher")
    spec = SPEC | {"model": TINY | {"hidden_size": 24, "num_layers": 2}, "num_steps": 20}
    trained = engine.run(Checkpoint, "train", spec, root / "checkpoints" / "train-00", **world.inputs())
    return engine.run(
        ModelFolder, "export", {}, root / "models" / "export-00", checkpoint=trained.uri, tokenizer=world.tokenizer.uri
    )


class Server(ThreadingHTTPServer):
    """Serves a model's log-probabilities as `completions` with echo; the first `failures` requests are turned away."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = model, tokenizer
        self.failures, self.asked, self.keys, self.silent = 0, 0, set[str](), False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.silent:
            return {"choices": [{"text": ""}]}
        ids = asked["prompt"]
        with torch.no_grad():
            log_p, likely = self.model(torch.tensor([ids])).logits[0].log_softmax(-1).topk(asked["logprobs"], dim=-1)
        places: list[Any] = [None]
        for values, numbers in zip(log_p[:-1].tolist(), likely[:-1].tolist(), strict=True):
            places.append({f"token_id:{number}": value for number, value in zip(numbers, values, strict=True)})
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": places}}]}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        self.server.keys.add(self.headers.get("Authorization", ""))
        code = 503 if self.server.asked <= self.server.failures else 200
        if self.path != "/v1/completions" or asked["max_tokens"] != 0 or not asked["echo"]:
            code = 404
        body = json.dumps(self.server.answer(asked) if code == 200 else {"error": "not now"}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(teacher, world, monkeypatch) -> Iterator[Server]:
    model = AutoModelForCausalLM.from_pretrained(teacher.folder(), dtype=torch.float32).eval()
    with Server(model, Tokenizer.from_file(str(Path(world.tokenizer.folder()) / "tokenizer.json"))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv(URL, running.url)
        monkeypatch.setenv(KEY, "secret")
        yield running
        running.shutdown()
        thread.join()


def asker(server: Server, cache: Path, **fields: Any) -> ServedTeacher:
    spec = DistillSpec.model_validate({"teacher": "served", "temperature": 1.0, "top_k": 4} | fields)
    return ServedTeacher.of(spec, server.tokenizer, cache, pause_s=0.01)


@pytest.mark.parametrize("hidden", [None, {"weight": 1.0}])
def test_language_model_learns_from_a_teacher_of_another_shape(world, engine, teacher, tmp_path, hidden) -> None:
    spec = SPEC | {"distill": {"alpha": 0.5, "hidden": hidden}}
    trained = engine.run(
        Checkpoint, "train", spec, tmp_path / "checkpoints" / "train-00", **world.inputs(), teacher=teacher.uri
    )
    student = engine.run(
        ModelFolder,
        "export",
        {},
        tmp_path / "models" / "export-00",
        checkpoint=trained.uri,
        tokenizer=world.tokenizer.uri,
    )
    assert student.num_parameters < teacher.num_parameters
    assert trained.num_steps == 3


def test_teacher_with_another_vocabulary_is_refused_and_both_are_named(world, engine, teacher, make, tmp_path) -> None:
    other = make.world(tmp_path / "other", [make.texts(30, 3)], 280, 32)
    error, message = engine.fail(
        "train", SPEC | {"distill": {}}, tmp_path / "out", **other.inputs(), teacher=teacher.uri
    )
    assert error == "RequestError"
    assert f"teacher {teacher.address} and tokenizer {other.tokenizer.address} read other tokens" in message


def test_training_without_its_teacher_is_refused(world, engine, tmp_path) -> None:
    error, message = engine.fail("train", SPEC | {"distill": {}}, tmp_path / "out", **world.inputs())
    assert (error, "'teacher'" in message) == ("RequestError", True)


def test_served_teacher_says_what_its_model_says_once_for_each_text(server, tmp_path) -> None:
    teacher = asker(server, tmp_path)
    ids = [1, 40, 41, 42, 2]
    told, again = teacher.top_tokens(ids), teacher.top_tokens(ids)
    assert server.asked == 1
    assert server.keys == {"Bearer secret"}
    log_p = server.model(torch.tensor([ids])).logits[0].log_softmax(-1).detach().topk(4, dim=-1)
    assert np.array_equal(told.ids[:-1], log_p.indices[:-1].numpy())
    assert np.allclose(told.log_p[:-1], log_p.values[:-1].numpy(), atol=1e-6)
    assert (told.ids[-1] == -1).all()
    assert np.array_equal(again.ids, told.ids)


def test_loss_of_all_tokens_served_is_that_of_the_model_itself(server, tmp_path) -> None:
    size = server.tokenizer.get_vocab_size()
    tokens = torch.tensor([[1, 50, 51, 52, 2, 0]])
    documents = torch.tensor([[0, 0, 0, 0, 0, -1]])
    labels = tokens.masked_fill(documents < 0, IGNORED)
    batch = MicroBatch(tokens, torch.arange(6)[None], targets_of(labels), documents)
    told = asker(server, tmp_path, top_k=size).top_tokens(tokens[0, :5].tolist())
    nothing = torch.full((1, 1, size), -1), torch.full((1, 1, size), float("-inf"))
    full = ToldBatch(
        batch,
        torch.cat([torch.from_numpy(told.ids)[None], nothing[0]], dim=1),
        torch.cat([torch.from_numpy(told.log_p)[None], nothing[1]], dim=1),
    )
    student = torch.randn(1, 6, size, generator=torch.Generator().manual_seed(0))
    spec = DistillSpec.model_validate({"teacher": "served", "temperature": 1.0, "alpha": 1.0, "top_k": size})
    found = told_loss(lambda output, inputs: torch.zeros(()), spec)(type("O", (), {"logits": student}), full)
    logits = server.model(tokens[:, :5]).logits.detach()
    expected = sum_divergence(student[:, :5], logits, full.targets_BS[:, :5], 1.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_busy_teacher_is_asked_again_and_one_that_stays_away_is_named(server, tmp_path) -> None:
    server.failures = 2
    assert asker(server, tmp_path).top_tokens([1, 40, 2]).ids.shape == (3, 4)
    assert server.asked == 3
    server.failures = 10**6
    with pytest.raises(TrainingError, match=r"6 tries, the last: status 503, .*not now"):
        asker(server, tmp_path).top_tokens([1, 41, 2])


def test_teacher_without_log_probabilities_is_refused(server, tmp_path) -> None:
    server.silent = True
    with pytest.raises(RequestError, match="answers without log-probabilities"):
        asker(server, tmp_path).top_tokens([1, 40, 2])


def test_token_that_two_share_has_no_number_by_its_text() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "<0x80>": 1, "<0x81>": 2}, [], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    half = tokenizer.decode([1])
    assert tokenizer.decode([2]) == half  # half a character, both
    assert token_names(tokenizer) == {"a": 0, "<0x80>": 1, "<0x81>": 2}


def test_training_from_a_served_teacher_asks_each_document_once(world, server, tmp_path) -> None:
    """The application inherits the address, so it is started after the server."""
    from tests.training.conftest import Engine

    app = Engine()
    spec = SPEC | {"distill": {"teacher": "served", "temperature": 1.0, "top_k": 3}, "num_steps": 2}
    trained = app.run(Checkpoint, "train", spec, tmp_path / "checkpoints" / "train-00", **world.inputs())
    assert app.process.stdin is not None
    app.process.stdin.close()
    assert app.process.wait(timeout=60) == 0
    assert trained.num_steps == 2
    assert server.asked == len(list((tmp_path / "checkpoints" / "train-00" / "scratch" / "teacher").glob("*.npz")))


def test_served_teacher_without_an_address_is_refused_before_training(world, engine, tmp_path) -> None:
    spec = SPEC | {"distill": {"teacher": "served", "temperature": 1.0}}
    error, message = engine.fail("train", spec, tmp_path / "out", **world.inputs())
    assert error == "RequestError"
    assert f"{URL} is 'not set'" in message
