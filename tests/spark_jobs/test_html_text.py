import os
import signal
from collections.abc import Iterator

import pytest

from spark_jobs.html_text import Extractor, PageFailed, PageTimeout
from spark_jobs.read_pages import page_record

PAGE = "<html><head><title>t</title><script>no()</script></head><body><nav>menu</nav><article><p>Grüße an alle.</p></article></body></html>"


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    one = Extractor(1.5)
    yield one
    one.close()


def test_page_becomes_its_main_text(extractor: Extractor) -> None:
    assert extractor.text_of(PAGE) == "Grüße an alle."
    assert extractor.text_of("") == ""
    assert extractor.text_of("<p>unclosed <b>tags <i>everywhere") == "unclosed tags everywhere"


def test_page_without_end_is_stopped_and_the_next_one_is_read(extractor: Extractor) -> None:
    with pytest.raises(PageTimeout, match=r"1\.5 s"):
        extractor.text_of("<div>" * 1_000_000 + "deep")  # 5 MB of nested elements take the extractor hours
    assert extractor.text_of(PAGE) == "Grüße an alle."


def test_extractor_that_dies_costs_one_page(extractor: Extractor) -> None:
    extractor.text_of(PAGE)
    assert extractor._child is not None
    os.kill(extractor._child.pid, signal.SIGKILL)
    with pytest.raises(PageFailed):
        extractor.text_of(PAGE)
    assert extractor.text_of(PAGE) == "Grüße an alle."


@pytest.mark.parametrize(
    ("page", "declared", "expected"),
    [
        (PAGE.encode(), "", "Grüße an alle."),
        (PAGE.encode("latin-1"), "iso-8859-1", "Grüße an alle."),
        (b'<meta charset="koi8-r"><p>' + "Привет".encode("koi8-r"), "", "Привет"),
        (b"<html><body></body></html>", "", "html_empty"),
        (b"\x00\x01\x02" * 100, "", "bad_encoding"),
    ],
)
def test_page_record_decodes_by_what_is_declared(page: bytes, declared: str, expected: str) -> None:
    record = page_record("o", page, declared, 10.0)
    assert (record.text or record.reason) == expected
