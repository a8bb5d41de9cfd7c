import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.pii import KINDS, mask, mask_text

PIECES = st.sampled_from(
    ["a@b.com", "@", ".", "+", "-", " ", ":", "4111 1111 1111 1111", "4111111111111111", "203.0.114.7", "8.8.8.8", "1.2.3.4",
     "+49 30 901820", "+12025550123", "DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "2606:2800:220:1::5", "x", "é", "9",
     "version ", "<email>", "\n"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to Jo.Doe+news@mail.example.co.uk.", "Write to <email>."),
        ("<jo@example.org>, (ann@example.org)", "<<email>>, (<email>)"),
        ("mailto:jo@example.org?subject=x", "mailto:<email>?subject=x"),
        ("from 93.184.216.34:8080 at noon", "from <ip>:8080 at noon"),
        ("[93.184.216.34] and 151.101.1.69.", "[<ip>] and <ip>."),
        ("at 2606:2800:220:1:248:1893:25c8:1946, and 2a00:1450::200e!", "at <ip>, and <ip>!"),
        ("Call +49 30 901820 or +1 (202) 555-0123, or +442079460958.", "Call <phone> or <phone>, or <phone>."),
        ("card 4111 1111 1111 1111 exp 12/30", "card <card> exp 12/30"),
        ("5555-5555-5555-4444, 378282246310005", "<card>, <card>"),
        ("IBAN DE89 3704 0044 0532 0130 00 BIC X", "IBAN <iban> BIC X"),
        ("GB82WEST12345698765432.", "<iban>."),
    ],
)
def test_personal_data_becomes_its_token(text: str, masked: str) -> None:
    assert mask_text(text)[0] == masked
    assert mask_text(masked) == (masked, dict.fromkeys(KINDS, 0))


@pytest.mark.parametrize(
    "text",
    [
        "- 1.2.3.4 (2021-05-06)",
        "upgraded from version 10.0.0.142 to 10.0.0.145",
        "numpy==93.184.216.34, >=93.184.216.34",
        "firmware 93.184.216.34, build: 93.184.216.34",
        "v93.184.216.34",
        "10.0.0.1 127.0.0.1 192.168.1.20 0.0.0.0 192.0.2.55 224.0.0.251",
        "1.2.3.400 and 93.184.216.34.5 and 256.1.1.1",
        "section 4.12.3.1.200",
        "2001:db8::1 ::1 fe80::1 12:34:56 std::vector a::b 2021:05:06",
        "@dataclass def f(): x@y",
        "git@github.com:user/repo.git",
        "icon@2x.png, react@18.2.0, name@localhost",
        "ISBN 978-3-16-148410-0, 9783161484100, ISBN-10 0-306-40615-2",
        "4111 1111 1111 1112",  # Luhn fails
        "1234 5678 9012 3452",  # Luhn holds, no issuer
        "3.141592653589793238462643383279",
        "1609459200000 20210224183619 130283832797456",
        "41 11 11 11 11 11 11 11",
        hashlib.sha256(b"x").hexdigest(),
        "550e8400-e29b-41d4-a716-446655440000",
        "x+12025550123, @@ -1,7 +1,7 @@, +12345, 5+1000000000, +35236450.6",
        "+999 123 456 789 012 345 6",
        "DE89 3704 0044 0532 0130 01",
        "AB12CDEF34567890 ZZ99 0000 1111 2222",
    ],
)
def test_near_misses_stay(text: str) -> None:
    assert mask_text(text) == (text, dict.fromkeys(KINDS, 0))


def test_mask_counts_by_kind_and_touches_only_what_was_asked_for() -> None:
    texts = pa.array(["nothing", "a@b.org, c@d.org, +49 30 901820", "", "93.184.216.34"])
    masked, counts = mask(texts, ("email", "ip"))
    assert masked.to_pylist() == ["nothing", "<email>, <email>, +49 30 901820", "", "<ip>"]
    assert {kind: values.tolist() for kind, values in counts.items()} == {"email": [0, 2, 0, 0], "ip": [0, 0, 0, 1]}
    assert mask(texts, ())[0].equals(texts)


@given(st.lists(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30), max_size=8))
@settings(deadline=None, max_examples=150)
def test_mask_twice_or_in_another_order_gives_the_same_texts(texts: list[str]) -> None:
    once = mask(pa.array(texts, pa.string()), KINDS)[0].to_pylist()
    assert mask(pa.array(once, pa.string()), KINDS)[0].to_pylist() == once
    assert mask(pa.array(texts[::-1], pa.string()), KINDS[::-1])[0].to_pylist() == once[::-1]
    assert [mask_text(text)[0] for text in texts] == once
