"""What looks like a secret leaves no trace in a log; what does not is left alone."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.child import Child
from tasks.redaction import HIDDEN, redact, redact_logs


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("cannot connect to postgresql+asyncpg://nightmill:hunter22@db:5432/prefect", "hunter22"),
        ("s3 endpoint https://key:se%2Fcr3t@minio:9000 refused", "cr3t"),
        ("Authorization: Basic bmlnaHRtaWxsOnNlY3JldA==", "bmlnaHRtaWxsOnNlY3JldA"),
        ("headers={'Authorization': 'Bearer abc123.def456'}", "abc123.def456"),
        ("sent with bearer 0123456789abcdef", "0123456789abcdef"),
        ('{"password": "correct horse"}', "horse"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("aws_access_key_id = AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("using api-key=9f8e7d6c5b4a", "9f8e7d6c5b4a"),
        ("token hf_abcdefghijklmnopqrstuvwx is not valid", "hf_abcdefghijklmnopqrstuvwx"),
        ("key sk-proj-abcdefghijklmnop1234 is not valid", "sk-proj-abcdefghijklmnop1234"),
        ("POST https://hooks.slack.com/services/T000/B000/XXXXXXXX failed", "B000"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
    ],
)
def test_forms_of_secrets_are_hidden_and_the_rest_of_the_line_is_not(line, secret):
    told = redact(line)
    assert secret not in told
    assert HIDDEN in told
    assert told.split()[0] == line.split()[0] or line.startswith(("-----", "{", "headers", "AWS"))


@pytest.mark.parametrize(
    "line",
    [
        "step tokenize: 1,024 rows, 3 rejects, key 3f9a1c0b77d2e415",
        "http://127.0.0.1:4200/api answered 401",
        "tokens: 5000, next token 17, password rules are in the guide",
        "file:///data/a@b.txt was read",
        "loss 2.31 at step 40; sk-learn is no key",
    ],
)
def test_ordinary_lines_come_back_as_they_are(line):
    assert redact(line) == line


def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("NIGHTMILL_TEACHER_KEY", "plum-and-pear")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "nightmill:quincequince")
    assert redact("teacher says plum-and-pear") == f"teacher says {HIDDEN}"
    assert redact("login quincequince, nightmill:quincequince") == f"login {HIDDEN}, {HIDDEN}"


def test_working_folder_stays_in_messages_and_a_password_called_pwd_does_not(monkeypatch):
    monkeypatch.setenv("PWD", "/srv/nightmill")
    monkeypatch.setenv("DB_PWD", "correct horse")

    assert redact("nothing in /srv/nightmill/var for correct horse") == f"nothing in /srv/nightmill/var for {HIDDEN}"


def test_short_values_are_left_so_that_words_stay_readable(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "true")
    assert redact("the answer is true") == "the answer is true"


@given(st.text(max_size=200))
def test_redacting_twice_is_redacting_once(text):
    assert redact(redact(text)) == redact(text)


def test_log_records_are_redacted_for_every_handler(caplog):
    before = logging.getLogRecordFactory()
    try:
        redact_logs()
        redact_logs()
        with caplog.at_level(logging.INFO):
            logging.getLogger("prefect.flow_runs").info("password=%s for %d", "open-sesame", 3)
            try:
                raise ValueError("postgresql://a:b4dp4ss@db/x")
            except ValueError:
                logging.getLogger("any").exception("it failed")
    finally:
        logging.setLogRecordFactory(before)
    assert "open-sesame" not in caplog.text
    assert "b4dp4ss" not in caplog.text
    assert f"password={HIDDEN} for 3" in caplog.text
    assert "ValueError" in caplog.text


def test_output_of_children_is_redacted_in_their_file_and_in_the_log_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHTMILL_TEACHER_KEY", "plum-and-pear")
    seen: list[str] = []
    log = tmp_path / "step.log"
    script = "import os; print('key', os.environ['NIGHTMILL_TEACHER_KEY']); print('mysql://u:pa55word@h/d')"
    child = Child([sys.executable, "-c", script], log, on_line=seen.append)
    child.process.wait(30)
    child.stop()
    expected = [f"key {HIDDEN}", f"mysql://{HIDDEN}@h/d"]
    assert seen == expected
    assert log.read_text().splitlines() == expected
    assert child.last_lines().splitlines() == expected
