"""The process that turns pages into text, kept apart so that it can be killed: see html_text.py.

Frames on stdin: length (8 bytes, big-endian), UTF-8 HTML. On stdout: length, UTF-8 text.
"""

from __future__ import annotations

import contextlib
import resource
import sys

from resiliparse.extract.html2text import extract_plain_text

MEMORY_BYTES = 4 << 30  # a page that needs more ends this process, not the machine


def main() -> None:
    with contextlib.suppress(ValueError, OSError):  # the machine may allow less
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while header := source.read(8):
        text = text_of(source.read(int.from_bytes(header)).decode())
        encoded = text.encode("utf-8", "replace")
        sink.write(len(encoded).to_bytes(8) + encoded)
        sink.flush()


def text_of(page: str) -> str:
    """The main content; all of the page's text where nothing looks like that."""
    main = extract_plain_text(page, main_content=True, alt_texts=False, links=False, form_fields=False, noscript=False)
    return str(main or extract_plain_text(page, alt_texts=False, links=False, form_fields=False, noscript=False))


if __name__ == "__main__":
    main()
