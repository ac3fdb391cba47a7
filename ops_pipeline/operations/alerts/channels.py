"""Delivery: one message to one channel, within a time limit.

What belongs here: what each kind of channel is sent, and its errors in words without a secret.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from ops_pipeline.operations.alerts.policy import Channel

TIMEOUT_SECONDS = 10.0
MARKS = {"opened": "[!]", "reminder": "[still]", "resolved": "[ok]", "digest": "[!]", "test": "[test]"}
GOOD, BAD = "#2e7d32", "#c62828"


class Undelivered(Exception):
    """A message did not get through; the message says why, without the channel's secrets."""


@dataclass(frozen=True)
class Message:
    """What a person reads.

    Attributes:
        what: `opened`, `reminder`, `resolved`, `digest` or `test`.
        title: one line.
        text: what is known.
        severity: `error` or `warning`.
        key: of the cause.
        url: where to look; empty for nowhere.
        since: when it began, as text in UTC.
    """

    what: str
    title: str
    text: str
    severity: str
    key: str
    url: str = ""
    since: str = ""

    @property
    def subject(self) -> str:
        """The line that is seen first."""
        return f"{MARKS.get(self.what, '')} {self.title}".strip()

    @property
    def body(self) -> str:
        """The text, with when it began and where to look."""
        lines = [self.text, f"Since {self.since}." if self.since else "", self.url]
        return "\n".join(line for line in lines if line)


def deliver(channel: Channel, message: Message) -> None:
    """Send a message.

    Raises:
        Undelivered: it did not get through.
    """
    if channel.kind == "email":
        _mail(channel, message)
    elif channel.kind == "apprise":
        _apprise(channel, message)
    else:
        _post(channel, {"webhook": _generic, "slack": _slack, "teams": _teams}[channel.kind](message))


def _post(channel: Channel, content: Mapping[str, Any]) -> None:
    try:
        answer = httpx.post(channel.url.get_secret_value(), json=dict(content), timeout=TIMEOUT_SECONDS)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise Undelivered(f"{channel.name}: its URL is none that begins with https:// or http://") from None
    except httpx.HTTPError as error:
        # Not the error's own words: they may hold the URL, which is the secret.
        raise Undelivered(f"{channel.name}: {type(error).__name__}, no answer from its server") from None
    if not answer.is_success:
        raise Undelivered(f"{channel.name}: its server answered {answer.status_code} {answer.reason_phrase}")


def _generic(message: Message) -> dict[str, Any]:
    return {
        "event": message.what,
        "key": message.key,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "since": message.since,
        "url": message.url,
    }


def _slack(message: Message) -> dict[str, Any]:
    # https://api.slack.com/messaging/webhooks; & < > are the only characters to escape there.
    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    link = f"\n<{message.url}|Open in the web UI>" if message.url else ""
    since = f"\nSince {message.since}" if message.since else ""
    color = GOOD if message.what == "resolved" else BAD
    block = {"type": "section", "text": {"type": "mrkdwn", "text": f"{escaped(message.text)}{since}{link}"}}
    return {"text": escaped(message.subject), "attachments": [{"color": color, "blocks": [block]}]}


def _teams(message: Message) -> dict[str, Any]:
    # An Adaptive Card, which the workflows of Teams take: https://adaptivecards.io/explorer/
    color = "Good" if message.what == "resolved" else "Attention"
    blocks = [
        {
            "type": "TextBlock",
            "size": "Medium",
            "weight": "Bolder",
            "text": message.subject,
            "color": color,
            "wrap": True,
        },
        {"type": "TextBlock", "text": message.text, "wrap": True},
    ]
    if message.since:
        blocks.append({"type": "TextBlock", "text": f"Since {message.since}", "isSubtle": True, "wrap": True})
    card: dict[str, Any] = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
    if message.url:
        card["actions"] = [{"type": "Action.OpenUrl", "title": "Open in the web UI", "url": message.url}]
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [attachment]}


def _mail(channel: Channel, message: Message) -> None:
    mail = EmailMessage()
    mail["Subject"] = " ".join(message.subject.split())
    mail["From"] = channel.sender
    mail["To"] = ", ".join(channel.to)
    mail.set_content(message.body)
    try:
        with _server(channel) as server:
            server.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        code = getattr(error, "smtp_code", "")
        reason = f"{type(error).__name__} {code}".strip()
        raise Undelivered(f"{channel.name}: the mail server refused or did not answer ({reason})") from None


def _server(channel: Channel) -> smtplib.SMTP:
    url = urlsplit(channel.url.get_secret_value() or "smtp://127.0.0.1:25")
    host, context = url.hostname or "127.0.0.1", ssl.create_default_context()
    if url.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_SECONDS, context=context)
    else:
        server = smtplib.SMTP(host, url.port or 25, timeout=TIMEOUT_SECONDS)
        server.ehlo()
        if server.has_extn("starttls"):
            server.starttls(context=context)
        elif url.password:
            server.close()
            raise smtplib.SMTPNotSupportedError("no TLS: the password would be sent in the open")
    if url.username and url.password:
        server.login(unquote(url.username), unquote(url.password))
    return server


def _apprise(channel: Channel, message: Message) -> None:
    import apprise  # noqa: PLC0415 - a second of imports that only this kind of channel needs

    kind = apprise.NotifyType.SUCCESS if message.what == "resolved" else apprise.NotifyType.FAILURE
    target = apprise.Apprise()
    if not target.add(channel.url.get_secret_value()):
        raise Undelivered(f"{channel.name}: Apprise does not know such a URL")
    if not target.notify(body=message.body, title=message.subject, notify_type=kind):
        raise Undelivered(f"{channel.name}: Apprise could not deliver; its log line says why")
