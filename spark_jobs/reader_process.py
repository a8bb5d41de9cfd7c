"""A reader in a process of its own: started beside its caller, killed when it fails. What is said over its pipes is the caller's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

NOTHING: Mapping[str, str] = MappingProxyType({})


def start(script: str, environment: Mapping[str, str] = NOTHING) -> subprocess.Popen[bytes]:
    """`script`: a file of this folder. It does not inherit stderr."""
    # -P: the script's folder holds modules named like those of the standard library's users
    command = [sys.executable, "-P", str(Path(__file__).with_name(script))]
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def end(child: subprocess.Popen[bytes]) -> int:
    """Kill it; returns what it ended with."""
    child.kill()
    code = child.wait()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was still to be written to a dead child
                stream.close()
    return code
