"""What every request passes before a route sees it: an id, the size of its body, its key, its rate; and the line in the log."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders

from training.serve.failures import Refused, answer_of, error_body
from training.serve.keys import Buckets, Key, Keys
from training.serve.measures import Measures
from training.serve.request_log import CLIENT_GONE, Entry, RequestLog

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

GUARDED = "/v1/"
BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)


class Door:
    """ASGI middleware. keys None: whoever reaches the port may ask."""

    def __init__(
        self,
        app: App,
        max_body_bytes: int,
        keys: Keys | None,
        buckets: Buckets | None,
        log: RequestLog,
        measures: Measures,
    ) -> None:
        self.app, self.max_body_bytes, self.keys, self.buckets = app, max_body_bytes, keys, buckets
        self.log, self.measures = log, measures

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry, began = Entry(id=f"req_{uuid.uuid4().hex}"), time.perf_counter()
        scope.setdefault("state", {})["entry"] = entry
        scope["state"]["began"] = began

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = entry.status or message["status"]
                MutableHeaders(scope=message)["x-request-id"] = entry.id
            await send(message)

        try:
            await self._pass(scope, receive, sending, entry)
        finally:
            self._note(scope, entry, time.perf_counter() - began)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, entry: Entry) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_size(headers)
            if scope["path"].startswith(GUARDED):
                self._check_key(headers, entry)
        except Refused as refused:
            await answer_of(refused)(scope, receive, send)
            return
        size, too_large = 0, False

        async def receiving() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body_bytes:
                too_large = True
                return {"type": "http.request", "body": b"", "more_body": False}
            return message

        async def sending(message: Message) -> None:
            if not too_large:  # what a route makes of half a body is nobody's answer
                await send(message)

        await self.app(scope, receiving, sending)
        if too_large:
            await JSONResponse(self._too_large(), 413)(scope, receive, send)

    def _check_size(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise Refused(400, "Content-Length is not a number", code="invalid_header")
        if int(length) > self.max_body_bytes:
            raise Refused(413, self._too_large()["error"]["message"], code="request_too_large")

    def _too_large(self) -> dict[str, Any]:
        return error_body(413, f"the body is larger than {self.max_body_bytes} bytes", code="request_too_large")

    def _check_key(self, headers: Headers, entry: Entry) -> None:
        if self.keys is None:
            return
        found = BEARER.fullmatch(headers.get("authorization", ""))
        key: Key | None = self.keys.find(found[1]) if found else None
        if key is None:
            given = (
                "no key was given; send it as Authorization: Bearer KEY" if found is None else "this key is not good"
            )
            raise Refused(401, given, code="invalid_api_key")
        entry.key = key.name
        wait_s = self.buckets.take(key) if self.buckets else 0.0
        if wait_s > 0:
            raise Refused(
                429, f"more than {key.requests_per_minute:g} requests a minute", code="rate_limit_exceeded",
                retry_after=max(1, round(wait_s + 0.5)),
            )  # fmt: skip

    def _note(self, scope: MutableMapping[str, Any], entry: Entry, seconds: float) -> None:
        entry.route = getattr(scope.get("route"), "path", "other")
        entry.ms = round(seconds * 1000, 1)
        entry.status = entry.status or CLIENT_GONE
        self.measures.requests.labels(entry.route, str(entry.status)).inc()
        self.measures.seconds.labels(entry.route).observe(seconds)
        if entry.route.startswith(GUARDED) or entry.route == "other":
            self.log.write(entry)
