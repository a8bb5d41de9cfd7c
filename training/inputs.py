"""What a request must bring, checked in one place."""

from __future__ import annotations

from spark_jobs.errors import RequestError
from spark_jobs.requests import Request


def input_uri(request: Request, role: str) -> str:
    """Raises: RequestError if the request has no such input."""
    if role not in request.inputs:
        raise RequestError(f"job {request.job} wants input {role!r}, got {sorted(request.inputs)}")
    return request.inputs[role]
