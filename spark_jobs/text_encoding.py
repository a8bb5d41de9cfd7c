"""Bytes of unknown encoding to text.

In this order: a byte-order mark; valid UTF-8 (hardly any other text is); what the document or its server declares; the
escapes of ISO-2022 and HZ; the zeros of UTF-16; at last chardetng, Firefox's detector (hsivonen.fi/chardetng). Labels mean
what browsers take them for (encoding.spec.whatwg.org): "latin1" is Windows-1252. Docs and measurements: docs/text-policy.md.
"""

from __future__ import annotations

import codecs
import re

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
DETECT_BYTES = 1 << 20  # of a text, read by the detector
MAX_LOST = 0.005  # characters of a text that may be undecodable (they become U+FFFD); more of them and it is refused
MAX_CONTROLS = 0.1  # of a text's first characters, beyond which it is no text
META = re.compile(
    rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w.:-]{2,40})|<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]{2,40})""",
    re.IGNORECASE,
)
META_BYTES = 4096  # WHATWG looks at 1024; many pages declare later

# Codecs of Python that are supersets, and what browsers read under the label.
WIDER = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip

# Codecs of names and of source text.
NO_FILES = frozenset(("idna", "punycode", "undefined", "unicode_escape", "unicode-escape", "raw_unicode_escape",
    "raw-unicode-escape", "utf-7", "mbcs", "oem",
))  # fmt: skip


class Undecodable(ValueError):
    """Neither text in a known encoding nor nearly so."""


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """(text, Python's name of its encoding); a byte-order mark is removed. Raises: Undecodable."""
    for mark, name in MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], name), name
    name = detect(data, declared)
    return _decoded(data, name), name


def detect(data: bytes, declared: str = "") -> str:
    """The encoding of bytes without a byte-order mark."""
    escaped = _escaped(data)
    if escaped:
        return escaped
    if _is_utf8(data):
        return "utf-8"
    label = known(declared)
    if label not in ("", "utf-8") and _decodes(data, label):
        return label
    sample = data[:DETECT_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) > 0.3 * len(sample) / 2:
        return "utf-16-be" if even > odd else "utf-16-le"
    if _is_nearly_utf8(data):
        return "utf-8"
    import chardetng_py

    return known(chardetng_py.detect(sample)) or "cp1252"


def known(label: str) -> str:
    """Python's codec of a label, widened as browsers do; empty if there is none (or it is no codec of text)."""
    try:
        found = codecs.lookup(label.strip()) if label.strip() else None
    except (LookupError, ValueError):
        return ""
    if found is None or not found._is_text_encoding or found.name in NO_FILES:
        return ""
    return WIDER.get(found.name, found.name)


def declared_in(page: bytes) -> str:
    """The encoding that an HTML or XML page names in its head, or empty."""
    found = META.search(page[:META_BYTES])
    label = (found.group(1) or found.group(2)).decode("ascii") if found else ""
    return "utf-8" if label.lower().startswith("utf-16") else label  # it could not have been read


def _escaped(data: bytes) -> str:
    if b"\x1b$" in data and data.isascii():
        for name in ("iso2022_jp_2", "iso2022_kr", "iso2022_jp_ext"):
            if _decodes(data, name):
                return name
    if data.count(b"~{") > 2 and data.count(b"~}") > 2 and data.isascii() and _decodes(data, "hz"):
        return "hz" if _share_of_wide(data.decode("hz", "replace")) > 0.2 else ""
    return ""


def _share_of_wide(text: str) -> float:
    return 1 - len(text.encode("ascii", "ignore")) / max(len(text), 1)


def _is_utf8(data: bytes) -> bool:
    """The last character may be cut, if it is not the only sign of UTF-8."""
    return _decodes(data, "utf-8") and (data[-3:].isascii() or not data[:-3].isascii())


def _is_nearly_utf8(data: bytes) -> bool:
    """Ten times more whole characters beyond ASCII than stray bytes."""
    text = data.decode("utf-8", "replace")
    wide = len(text) - len(text.encode("ascii", "ignore"))
    lost = text.count("\ufffd")
    return wide - lost >= 10 * lost


def _decodes(data: bytes, name: str) -> bool:
    try:
        codecs.getincrementaldecoder(name)().decode(data, final=False)  # the last character may be cut
    except ValueError:
        return False
    return True


def _decoded(data: bytes, name: str) -> str:
    text = codecs.getincrementaldecoder(name)("replace").decode(data, final=False)  # a cut last character is dropped
    lost = text.count("\ufffd")
    if lost > MAX_LOST * len(text):
        raise Undecodable(f"{lost} of {len(text)} characters are lost as {name}")
    first = text[:10_000]
    controls = sum(char < " " and char not in "\t\n\r\f\x1b" for char in first)
    if controls > MAX_CONTROLS * len(first):
        raise Undecodable(f"{controls} of the first {len(first)} characters are control characters: no text")
    return text
