"""Real receivers of alerts: an HTTP server and a mail server, which can be told to misbehave.

What belongs here: starting and stopping, and what was received.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from ops_pipeline_tests.servers import free_port


@dataclass
class Webhook:
    """An HTTP server that keeps what is posted.

    Attributes:
        url: where to post.
        status: what it answers.
        delay: for how long it thinks before, in seconds.
        received: what was posted, in order.
    """

    url: str = ""
    status: int = 200
    delay: float = 0
    received: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook on a free port."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(hook.delay)
            hook.received.append(json.loads(body))
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}/hooks/s3cr3t-path"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Mailbox:
    """A mail server that keeps what is sent.

    Attributes:
        url: of the server, with user and password.
        mails: content, sender and receivers of each mail.
    """

    url: str
    mails: list[tuple[str, str, list[str]]] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Keep a mail."""
        self.mails.append((envelope.content.decode(), envelope.mail_from, envelope.rcpt_tos))
        return "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, _: Any) -> str:  # noqa: N802
        """Refuse receivers that do not exist."""
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"


@contextmanager
def mailbox(*, password: str = "") -> Iterator[Mailbox]:
    """A mail server on a free port; with a password it wants a login, which it takes without TLS."""
    port = free_port()
    login = f"ops:{password}@" if password else ""
    box = Mailbox(f"smtp://{login}127.0.0.1:{port}")

    def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        ok = isinstance(data, LoginPassword) and data.password.decode() == password
        return AuthResult(success=ok)

    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=port,
        authenticator=check if password else None,
        auth_require_tls=False,
        auth_required=bool(password),
    )
    controller.start()
    try:
        yield box
    finally:
        controller.stop()
