"""Who does something that is written down."""

from __future__ import annotations

import getpass
import os
import socket


def current_actor() -> str:
    """$NIGHTMILL_ACTOR, or user and host."""
    return os.environ.get("NIGHTMILL_ACTOR") or f"{getpass.getuser()}@{socket.gethostname()}"
