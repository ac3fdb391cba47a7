"""Messages reach real servers, and what goes wrong is told without a secret."""

from __future__ import annotations

import socket

import pytest
from pydantic import SecretStr

from ops_pipeline.operations.alerts import channels
from ops_pipeline.operations.alerts.channels import Message, Undelivered, deliver
from ops_pipeline.operations.alerts.policy import Channel, Kind
from ops_pipeline_tests.operations.alerts.receivers import mailbox, webhook
from ops_pipeline_tests.servers import free_port

MESSAGE = Message(
    "opened",
    "flush_firewall failed",
    "Its last run failed: 3 < 4 & more.",
    "error",
    "job:flush_firewall",
    "http://127.0.0.1:3000/runs/abc",
    "2026-11-27 12:00 UTC",
)
OVER = Message("resolved", "flush_firewall failed (over)", "…", "error", "job:flush_firewall")


def channel(kind: Kind, url: str, **more: object) -> Channel:
    return Channel("ops", kind, SecretStr(url), **more)  # type: ignore[arg-type]


def refusal(target: Channel) -> str:
    with pytest.raises(Undelivered) as caught:
        deliver(target, MESSAGE)
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


def test_a_webhook_gets_every_part_of_a_message_as_json() -> None:
    with webhook() as hook:
        deliver(channel("webhook", hook.url), MESSAGE)
    assert hook.received == [
        {
            "event": "opened",
            "key": "job:flush_firewall",
            "severity": "error",
            "title": "flush_firewall failed",
            "text": "Its last run failed: 3 < 4 & more.",
            "since": "2026-11-27 12:00 UTC",
            "url": "http://127.0.0.1:3000/runs/abc",
        }
    ]


def test_slack_gets_its_own_shape_with_what_it_would_take_for_a_link_escaped() -> None:
    with webhook() as hook:
        deliver(channel("slack", hook.url), MESSAGE)
        deliver(channel("slack", hook.url), OVER)
    opened, over = hook.received
    assert opened["text"] == "[!] flush_firewall failed"
    (attachment,) = opened["attachments"]
    text = attachment["blocks"][0]["text"]["text"]
    assert "3 &lt; 4 &amp; more" in text and "<http://127.0.0.1:3000/runs/abc|Open in the web UI>" in text
    assert over["attachments"][0]["color"] != attachment["color"]


def test_teams_gets_an_adaptive_card() -> None:
    with webhook() as hook:
        deliver(channel("teams", hook.url), MESSAGE)
    (message,) = hook.received
    (attachment,) = message["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    card = attachment["content"]
    assert [block["text"] for block in card["body"]] == [
        "[!] flush_firewall failed",
        "Its last run failed: 3 < 4 & more.",
        "Since 2026-11-27 12:00 UTC",
    ]
    assert card["actions"][0]["url"] == "http://127.0.0.1:3000/runs/abc"


def test_apprise_delivers_through_any_of_its_urls() -> None:
    with webhook() as hook:
        deliver(channel("apprise", hook.url.replace("http://", "json://")), MESSAGE)
    assert hook.received[0]["title"] == "[!] flush_firewall failed"
    assert "no such URL" not in refusal(channel("apprise", "nonsense://s3cr3t"))


@pytest.mark.parametrize("status", [400, 403, 404, 410, 429, 500, 503])
def test_a_refusal_of_a_webhook_is_told_with_its_status(status: int) -> None:
    with webhook() as hook:
        hook.status = status
        assert str(status) in refusal(channel("webhook", hook.url))


def test_a_webhook_that_is_not_there_or_does_not_answer_costs_its_time_limit_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chat server that hung held up everything behind it."""
    assert "no answer" in refusal(channel("webhook", f"http://127.0.0.1:{free_port()}/s3cr3t"))
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 0.2)
    with webhook() as hook:
        hook.delay = 1
        assert "ReadTimeout" in refusal(channel("webhook", hook.url))


def test_what_is_no_url_is_said_to_be_none() -> None:
    for url in ("http://host:s3cr3t/", "s3cr3t.example/hook"):
        assert refusal(channel("webhook", url)) == "ops: its URL is none that begins with https:// or http://"


def test_mail_reaches_everyone_with_subject_text_and_link() -> None:
    with mailbox() as box:
        to = ("a@example.org", "b@example.org")
        deliver(channel("email", box.url, to=to, sender="ops@example.org"), MESSAGE)
    ((content, sender, receivers),) = box.mails
    assert sender == "ops@example.org" and receivers == list(to)
    assert "Subject: [!] flush_firewall failed" in content
    assert "3 < 4 & more" in content and "/runs/abc" in content


def test_a_line_break_in_a_title_adds_no_header() -> None:
    tricky = Message("opened", "x\nBcc: thief@example.org", "…", "error", "k")
    with mailbox() as box:
        deliver(channel("email", box.url, to=("a@example.org",), sender="ops@example.org"), tricky)
    ((content, _, receivers),) = box.mails
    assert receivers == ["a@example.org"] and "\nBcc" not in content


def test_a_password_is_not_sent_in_the_open() -> None:
    with mailbox(password="s3cr3t") as box:
        words = refusal(channel("email", box.url, to=("a@example.org",), sender="ops@example.org"))
    assert "SMTPNotSupportedError" in words and box.mails == []


def test_refusals_of_a_mail_server_are_told() -> None:
    with mailbox() as box:
        assert "SMTPRecipientsRefused" in refusal(
            channel("email", box.url, to=("nobody@example.org",), sender="o@x.org")
        )
    gone = f"smtp://ops:s3cr3t@127.0.0.1:{free_port()}"
    assert "ConnectionRefusedError" in refusal(channel("email", gone, to=("a@example.org",), sender="o@x.org"))


def test_a_mail_server_that_says_nothing_costs_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        assert "did not answer" in refusal(channel("email", url, to=("a@example.org",), sender="o@x.org"))
