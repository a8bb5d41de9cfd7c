import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spark_jobs.errors import DataError, RequestError
from spark_jobs.expectations import failures
from spark_jobs.manifests import CheckReport, Documents, TokenizerFiles, TokenShards
from spark_jobs.specs import CheckSpec, IngestSpec, SourceSpec, TokenizerSpec, TokenizeSpec
from tests.spark_jobs.workspace import Workspace, digest_of, read_rows, write_jsonl

TEXTS = [f"Document {n}: " + "the quick brown fox jumps over the lazy dog, naïvely. " * (n % 7) for n in range(60)]
SPEC = TokenizeSpec(seq_len=32, heldout_share=0.1)


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Documents]:
    def ingest(workspace: Workspace, texts: list[str] = TEXTS, table_format: str = "parquet") -> Documents:
        write_jsonl(tmp_path / "in/a.jsonl", [{"text": text} for text in texts])
        source = SourceSpec(kind="jsonl", path=str(tmp_path / "in"))
        result: Documents = workspace.run(Documents, "ingest", IngestSpec(sources=(source,), format=table_format))
        return result

    return ingest


def test_tokenize_keeps_every_token_once_and_orc_equals_parquet(
    workspace: Workspace, ingest: Callable[..., Documents]
) -> None:
    from tokenizers import Tokenizer

    documents = ingest(workspace)
    files = workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(vocab_size=400), documents=documents)
    tokens = workspace.run(TokenShards, "tokenize", SPEC, documents=documents, tokenizer=files)
    rows = read_rows(tokens.uri, "data")
    assert [row["seq_id"] for row in rows] == list(range(tokens.num_rows))
    assert sum(len(row["tokens"]) for row in rows) == tokens.num_tokens
    heldout = read_rows(tokens.uri, "heldout")
    assert 0 < len(heldout) == tokens.num_heldout < 20

    tokenizer = Tokenizer.from_file(f"{files.folder()}/tokenizer.json")
    by_id = {row["doc_id"]: row["text"] for row in read_rows(documents.uri, "data")}
    pieces: dict[str, list[list[int]]] = {}
    for row in rows:
        begin = 0
        for doc_id, length in zip(row["doc_ids"], row["doc_lengths"], strict=True):
            pieces.setdefault(doc_id, []).append(row["tokens"][begin : begin + length])
            begin += length
    assert set(pieces) == set(by_id) - {row["doc_id"] for row in heldout}
    for doc_id, parts in pieces.items():
        assert sum(part[0] == files.bos_id for part in parts) == sum(part[-1] == files.eos_id for part in parts) == 1
        if len(parts) == 1:
            assert tokenizer.decode(parts[0]) == by_id[doc_id]

    orc = workspace.run(
        TokenShards, "tokenize", SPEC.model_copy(update={"format": "orc"}), "n2", documents=documents, tokenizer=files
    )
    assert read_rows(orc.uri, "data") == rows
    assert read_rows(orc.uri, "heldout") == heldout
    assert {path.rsplit(".")[-1] for path in digest_of(orc.uri)} == {"orc"}

    good = workspace.run(CheckReport, "check-tokens", CheckSpec(), dataset=tokens)
    assert (good.success, good.failed) == (True, ())
    again = workspace.run(CheckReport, "check-tokens", CheckSpec(), dataset=tokens)
    assert digest_of(again.uri) == digest_of(good.uri)
    wrong = tokens.model_copy(update={"num_tokens": tokens.num_tokens + 1, "vocab_size": 10})
    Path(tokens.uri, "_manifest.json").write_text(wrong.canonical())
    bad = workspace.run(CheckReport, "check-tokens", CheckSpec(), dataset=wrong)
    assert set(bad.failed) == {
        "expect_column_sum_to_be_between(num_tokens)", "expect_column_values_to_be_between(greatest_token)",
    }  # fmt: skip


def test_tokenize_one_document_held_out_says_what_to_do(workspace: Workspace, ingest: Callable[..., Documents]) -> None:
    documents = ingest(workspace, ["only one"])
    files = workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(vocab_size=300), documents=documents)
    spec = SPEC.model_copy(update={"heldout_share": 0.9999999})
    with pytest.raises(DataError, match=r"1 documents and none left to train on .*heldout_share"):
        workspace.run(TokenShards, "tokenize", spec, documents=documents, tokenizer=files)


def test_tokenizer_is_the_same_each_time_and_can_be_imported(
    workspace: Workspace, ingest: Callable[..., Documents], tmp_path: Path
) -> None:
    documents = ingest(workspace, table_format="orc")
    first = workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(vocab_size=400), documents=documents)
    second = workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(vocab_size=400), "n2", documents=documents)
    assert digest_of(first.uri) == digest_of(second.uri)
    assert 256 + 3 < first.vocab_size <= 400  # so few texts have no more pairs worth a merge
    imported = workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(folder=first.folder()), "n3")
    assert digest_of(imported.uri) == digest_of(first.uri)
    config = json.loads(Path(first.folder(), "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    for wrong, words in ((tmp_path / "nowhere", "no tokenizer.json"), (tmp_path / "broken", "not a tokenizer")):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken/tokenizer.json").write_text("{}")
        with pytest.raises(RequestError, match=words):
            workspace.run(TokenizerFiles, "tokenizer", TokenizerSpec(folder=str(wrong)), "n4")


class Answer:
    """Stands for a Great Expectations result with a given number of answers."""

    def __init__(self, num_results: int) -> None:
        self.results = [
            type("One", (), {"success": True, "exception_info": {}, "result": {}})() for _ in range(num_results)
        ]


@pytest.mark.parametrize(
    ("num_results", "num_expected", "failed"),
    [(2, 2, []), (0, 0, ["suite_is_empty"]), (1, 2, ["results_are_missing(1)"])],
)
def test_a_suite_without_all_its_answers_fails(num_results: int, num_expected: int, failed: list[str]) -> None:
    assert failures(Answer(num_results), num_expected) == failed  # type: ignore[arg-type]
