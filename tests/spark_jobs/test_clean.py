from pathlib import Path

from spark_jobs.manifests import Documents
from spark_jobs.specs import CleanSpec, IngestSpec, SourceSpec
from tests.spark_jobs.workspace import Workspace, read_rows

ENGLISH = (
    "The cat sat on the mat and looked out of the window, because it had to be fed with something that it liked. " * 4
)
GERMAN = (
    "Die Katze saß auf der Matte und sah aus dem Fenster, weil sie etwas fressen wollte, das ihr gut schmeckt. " * 4
)
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 4


def archive(pages: dict[str, str]) -> bytes:
    records = []
    for address, page in pages.items():
        body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body><p>{page}</p></body></html>".encode()
        header = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {address}\r\nContent-Type: application/http; msgtype=response\r\n"
        records.append(f"{header}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n")
    return b"".join(records)


def test_pages_of_an_archive_come_out_clean_masked_and_with_their_language(
    workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    pages = {
        "http://x/en": f"{ENGLISH} CafÃ© â€“ write to jo@example.org or call +49 30 901820.",
        "http://x/de": GERMAN,
        "http://x/zh": CHINESE,
        "http://x/short": "Four words for jo@example.org.",
    }
    (tmp_path / "in/a.warc").write_bytes(archive(pages)[:-3])
    (tmp_path / "in/b.warc.gz").write_bytes(b"\x1f\x8b\x08 broken")
    source = SourceSpec(kind="warc", path=str(tmp_path / "in"), name="crawl")
    ingested = workspace.run(Documents, "ingest", IngestSpec(sources=(source,)))
    assert {name: count for name, count in ingested.counts.items() if "files" not in name} == {
        "in": 5, "out": 4, "reject.bad_record": 1,
    }  # fmt: skip

    spec = CleanSpec(languages=("en", "zh"), min_language_score=0.5, fix_mojibake=True)
    cleaned = workspace.run(Documents, "clean", spec, documents=ingested)
    rows = {row["language"]: row for row in read_rows(cleaned.uri, "data")}
    assert set(rows) == {"en", "zh"}
    assert rows["en"]["text"].endswith("Café – write to <email> or call <phone>.")
    assert rows["en"]["origin"] == "a.warc@0 http://x/en"
    assert all(0.5 <= row["language_score"] <= 1 for row in rows.values())
    assert cleaned.counts == {
        "in": 4, "out": 2, "reject.language": 1, "reject.too_few_words": 1,
        "masked.card": 0, "masked.email": 1, "masked.iban": 0, "masked.ip": 0, "masked.phone": 1,
        "mended.nul": 0, "mended.mojibake": 1,
    }  # fmt: skip
    details = {row["reason"]: row["detail"] for row in read_rows(cleaned.uri, "rejects")}
    assert details == {"language": "de", "too_few_words": ""}
