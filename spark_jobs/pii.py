"""Masking of personal data: what is found AND passes its check is replaced by a fixed token. No Spark.

 email  <email>  local@domain.tld (RFC 5321 lengths); not file names like icon@2x.png, not git@host:path
 ip     <ip>     IPv4 and IPv6 addresses of the public internet (IANA registries, by `ipaddress`). Versions stay: four numbers
                 all below 32 (a random address is like that once in 4096), or after a word like "version" or a comparison
 phone  <phone>  international format only: + and 9 to 15 digits (E.164; 10 without separators), assigned country code
 card   <card>   13 to 19 digits, evenly separated or not at all, of a known issuer range, Luhn check digit (ISO/IEC 7812)
 iban   <iban>   length of its country (SWIFT registry) and ISO 7064 mod 97

The result depends on the text alone, and masking twice changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

KINDS = ("email", "iban", "card", "phone", "ip")  # in the order of replacement

# What a text must hold to be looked at closely (RE2: linear, and 40 times faster than looking closely).
HINTS = {
    "email": r"[0-9A-Za-z]@[0-9A-Za-z]",
    "iban": r"[A-Z][A-Z][0-9][0-9] ?[0-9A-Z]{4}",
    "card": r"(?:[0-9][ -]?){12}[0-9]",
    "phone": r"\+[1-9][ 0-9().\-/]{8}",
    "ip": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]*:",
}

# a literal first character lets `re` skip the rest of the text; what stands before the @ is checked backwards
EMAIL = re.compile(r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w@-]|:[\w~/])")
LOCAL_PART = re.compile(r"(?<![\w.+%-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}\Z")
FILE_ENDINGS = frozenset((
    "png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "html", "htm", "json", "tgz", "gz", "zip", "whl",
    "so", "py", "md", "rst",
))  # fmt: skip
# the look-behind stands after the first character, so that `re` can skip to places where the match may begin
IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z][0-9]{2}(?: ?[0-9A-Z]){11,30}(?!\w)")
CARD = re.compile(r"[0-9](?<![\w.+-].)(?<!\d .)(?:[ -]?[0-9]){12,18}(?![\w-])(?![. ][0-9])")
PHONE = re.compile(r"\+(?<![\w+.].)[1-9](?:[ .\-/]?(?:\([0-9]{1,5}\)[ ]?)?[0-9]){7,14}(?![\w+]|[ .,:/-][0-9])")
DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")
IPV4 = re.compile(r"[0-9](?<![\w.+-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[\w])")
IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:]|\.[0-9])")
VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release[sd]?|revision|update[sd]?|upgrade[sd]?|firmware|driver|build|python|since|changes in)\b\.?(?: to| from)?[\s:=\"'(]*|[=<>~^]=?\s*)$",
    re.IGNORECASE,
)
VERSION_NUMBERS = 32

# Country calling codes assigned by the ITU (E.164): zones 1 and 7 whole; two digits; the rest of those zones has three.
TWO_DIGIT_CODES = frozenset((
    "20", "27", "30", "31", "32", "33", "34", "36", "39", "40", "41", "43", "44", "45", "46", "47", "48", "49", "51",
    "52", "53", "54", "55", "56", "57", "58", "60", "61", "62", "63", "64", "65", "66", "81", "82", "84", "86", "90",
    "91", "92", "93", "94", "95", "98",
))  # fmt: skip
THREE_DIGIT_ZONES = frozenset((
    "21", "22", "23", "24", "25", "26", "29", "35", "37", "38", "42", "50", "59", "67", "68", "69", "80", "85", "87",
    "88", "96", "97", "99",
))  # fmt: skip

# Issuer ranges: leading digits and lengths (ISO/IEC 7812 register as published by the card schemes).
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12}"
)

# Characters of an IBAN by country (SWIFT IBAN registry).
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26,
    "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27,
    "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


def mask(texts: pa.Array, kinds: Sequence[str]) -> tuple[pa.Array, dict[str, NDArray[np.int64]]]:
    """(the texts masked, for each of `kinds` the number of replacements in each text). No nulls in `texts`."""
    counts = {kind: np.zeros(len(texts), np.int64) for kind in kinds}
    places = np.arange(len(texts))
    if not kinds or not len(places := places[_hinted(texts, "|".join(HINTS[kind] for kind in kinds))]):
        return texts, counts
    suspects = texts.take(pa.array(places))
    hinted = {kind: _hinted(suspects, HINTS[kind]) for kind in kinds}
    masked = suspects.to_pylist()
    for number, place in enumerate(places):
        masked[number], found = mask_text(masked[number], [kind for kind in kinds if hinted[kind][number]])
        for kind, count in found.items():
            counts[kind][place] = count
    chosen = np.zeros(len(texts), bool)
    chosen[places] = True
    return pc.replace_with_mask(texts, pa.array(chosen), pa.array(masked, texts.type)), counts


def _hinted(texts: pa.Array, pattern: str) -> NDArray[np.bool_]:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def mask_text(text: str, kinds: Sequence[str] = KINDS) -> tuple[str, dict[str, int]]:
    found = dict.fromkeys(kinds, 0)
    changed = True
    while changed:  # a replacement may bare what stood beside it; each one takes characters that never come back
        changed = False
        for kind, pattern, span_of in FINDERS:
            if kind not in found:
                continue
            pieces: list[str] = []
            at = 0
            for match in pattern.finditer(text):
                span = span_of(text, match)
                if span and span[0] >= at:
                    pieces += (text[at : span[0]], f"<{kind}>")
                    at = span[1]
                    found[kind] += 1
            if pieces:
                text, changed = "".join((*pieces, text[at:])), True
    return text, found


Span = tuple[int, int]  # of characters to replace


def _email(text: str, match: re.Match[str]) -> Span | None:
    local = LOCAL_PART.search(text, max(0, match.start() - 65), match.start())
    if local is None or local.group().endswith(".") or ".." in local.group():
        return None
    if match.group().rpartition(".")[2].lower() in FILE_ENDINGS:
        return None
    return local.start(), match.end()


def _iban(_: str, match: re.Match[str]) -> Span | None:
    found = match.group()
    wanted = IBAN_LENGTHS.get(found[:2], 99)
    seen = 0
    for place, char in enumerate(found, start=1):
        seen += char != " "
        if seen == wanted:
            whole = place == len(found) or found[place] == " "  # the greedy match may have run into the next word
            return (match.start(), match.start() + place) if whole and is_iban(found[:place].replace(" ", "")) else None
    return None


def is_iban(number: str) -> bool:
    moved = number[4:] + number[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def _card(_: str, match: re.Match[str]) -> Span | None:
    found = match.group()
    digits = re.sub(r"[ -]", "", found)
    groups = re.split(r"[ -]", found)
    if len(set(found) & {" ", "-"}) > 1 or (len(groups) > 1 and min(map(len, groups[:-1])) < 4):
        return None
    return match.span() if ISSUERS.fullmatch(digits) and is_luhn(digits) else None


def is_luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number - 9 if number > 9 else number
    return total % 10 == 0


def _phone(_: str, match: re.Match[str]) -> Span | None:
    found = match.group()
    if DECIMAL.fullmatch(found):
        return None
    digits = re.sub(r"\D", "", found)
    least = 9 if len(digits) + 1 < len(found) else 10
    known = digits[0] in "17" or digits[:2] in TWO_DIGIT_CODES or digits[:2] in THREE_DIGIT_ZONES
    return match.span() if least <= len(digits) <= 15 and known and len(set(digits[1:])) > 1 else None


def _ipv4(text: str, match: re.Match[str]) -> Span | None:
    if max(map(int, match.group().split("."))) < VERSION_NUMBERS:
        return None
    if VERSION_BEFORE.search(text, max(0, match.start() - 24), match.start()):
        return None
    return _public_address(text, match)


def _public_address(_: str, match: re.Match[str]) -> Span | None:
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return None
    return match.span() if address.is_global and not address.is_multicast else None


FINDERS: tuple[tuple[str, re.Pattern[str], Callable[[str, re.Match[str]], Span | None]], ...] = (
    ("email", EMAIL, _email),
    ("iban", IBAN, _iban),
    ("card", CARD, _card),
    ("phone", PHONE, _phone),
    ("ip", IPV4, _ipv4),
    ("ip", IPV6, _public_address),
)
