"""What a refused request gets: OpenAI's error body, one sentence, and nothing of the server's inside."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("nightmill.serve")

TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "server_error",
}  # fmt: skip


class Refused(Exception):
    """A request that gets no answer. status: of HTTP; param: the field at fault; code: OpenAI's short name for it."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {
        "error": {
            "message": message, "type": TYPES.get(status, "invalid_request_error"), "param": param, "code": code,
        }
    }  # fmt: skip


def answer_of(refused: Refused) -> JSONResponse:
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(refused.status, refused.message, refused.param, refused.code)
    return JSONResponse(body, refused.status, headers)


def handle_errors(app: FastAPI) -> None:
    """Every way out of `app` that is not an answer goes through one of these."""

    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return answer_of(error)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer_of(first_fault(error))

    async def of_http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = error_body(error.status_code, str(error.detail))
        return JSONResponse(body, error.status_code, error.headers)

    async def unforeseen(_request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed: %s", type(error).__name__)  # its words may hold what a person wrote
        return JSONResponse(error_body(500, "the server failed; try again"), 500)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, unforeseen)


def first_fault(error: RequestValidationError) -> Refused:
    """One sentence about the first field at fault; the value itself is not repeated."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    if fault["type"] == "json_invalid":
        return Refused(400, "the body is not JSON", code="invalid_json")
    if fault["type"] == "extra_forbidden":
        return Refused(400, f"{place}: this server has no such field; leave it out", place, "unknown_parameter")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return Refused(400, f"{place or 'body'}: {message}", place or None, "invalid_value")
