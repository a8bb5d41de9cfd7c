"""E-mail by SMTP as a block of Prefect: its own notification blocks know services, not a mail server.

Imported where blocks are read: by the server (`tasks.server_process`, and `prefect server start` through the entry point
`prefect.collections`) and by `nightmill deploy`.
"""

from __future__ import annotations

from prefect.blocks.notifications import AppriseNotificationBlock
from pydantic import Field, SecretStr


class NightmillEmail(AppriseNotificationBlock):
    """Sends an e-mail through a mail server."""

    _block_type_name = "Nightmill e-mail"
    _block_type_slug = "nightmill-e-mail"

    url: SecretStr = Field(
        default=...,
        title="Address",
        description="mailtos://USER:PASSWORD@HOST:PORT?from=SENDER&to=RECEIVER,RECEIVER (TLS), or mailto:// without TLS.",
        examples=["mailtos://user:password@smtp.example.com:587?from=nightmill@example.com&to=you@example.com"],
    )
