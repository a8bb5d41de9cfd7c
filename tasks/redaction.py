"""Secrets do not reach a log: what looks like one is replaced before a line is kept, sent to Prefect or printed.

Two rules. Values of environment variables whose name says that they are secret (`*_KEY`, `*_TOKEN`, `*PASSWORD*`, `*_AUTH_STRING` ...)
are replaced wherever they stand. Text that has the form of a secret is replaced whatever it is called: passwords in addresses,
`Authorization` headers, `password=...`, keys of well-known services, private keys. It is a net below a rope: parameters and specs hold no
secrets to begin with.
"""

from __future__ import annotations

import logging
import os
import re
from functools import lru_cache
from typing import Any

HIDDEN = "[hidden]"
MIN_LENGTH = 6  # shorter values (`true`, `5432`) would take ordinary words out of the log
SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|ACCESS_KEY|SECRET_KEY|PRIVATE_KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|AUTH_STRING|CREDENTIALS?|"
    r"ALERT_(URL|SLACK|EMAIL))$|_PWD$",  # PWD alone is the working folder, which messages have to name
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?P<keep>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"]+(?=@)")
_HEADER = re.compile(
    r"(?P<keep>\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token)\s+)?)[^\s'\",]+", re.IGNORECASE
)
_BEARER = re.compile(r"(?P<keep>\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<keep>(?<![A-Za-z])(?:[A-Za-z0-9_-]*[_-])?"
    r"(?:api[_-]?key|access[_-]?key(?:[_-]?id)?|secret[_-]?key|secret|password|passwd|pwd|auth[_-]string|(?:access|auth|api|hf)[_-]token)"
    r"['\"]?\s*[:=]\s*['\"]?)(?!\[hidden\])(?:(?<=\")[^\"\n]{4,}|(?<=')[^'\n]{4,}|[^\s'\",;&}]{4,})",
    re.IGNORECASE,
)
_KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\bsk-[A-Za-z0-9_-]{16,}|\bnm-[A-Za-z0-9_-]{24,}|\bpnu_[A-Za-z0-9]{20,}|\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}"
    r"|https://hooks\.slack(?:-gov)?\.com/services/\S+"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact(text: str) -> str:
    """`text` without secrets. Text without any comes back as it is."""
    values = _secret_values(tuple(sorted((n, v) for n, v in os.environ.items() if SECRET_NAME.search(n))))
    for value in values:
        if value in text:
            text = text.replace(value, HIDDEN)
    for pattern in (_ADDRESS, _HEADER, _BEARER, _NAMED):
        text = pattern.sub(lambda found: found["keep"] + HIDDEN, text)
    return _PRIVATE_KEY.sub(HIDDEN, _KNOWN.sub(HIDDEN, text))


def redact_logs() -> None:
    """Every log record made in this process from now on is redacted when it is made, whoever handles it. Safe to call twice."""
    made = logging.getLogRecordFactory()
    if isinstance(made, _Redacting):
        return
    logging.setLogRecordFactory(_Redacting(made))


class _Redacting:
    """A factory of log records around another one."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self, *arguments: Any, **named: Any) -> logging.LogRecord:
        record: logging.LogRecord = self.made(*arguments, **named)
        try:
            told = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: logging itself complains of them
            return record
        hidden = redact(told)
        if hidden != told:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[1] is not None:
            trace = logging.Formatter().formatException(record.exc_info)
            hidden_trace = redact(trace)
            if hidden_trace != trace:
                record.exc_info, record.exc_text = None, hidden_trace
        return record


@lru_cache(maxsize=8)
def _secret_values(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Longest first, so that a value inside another does not leave a rest. Of `user:password` also the password alone."""
    values = {value for _, value in variables} | {value.partition(":")[2] for _, value in variables}
    return tuple(sorted((value for value in values if len(value) >= MIN_LENGTH), key=len, reverse=True))
