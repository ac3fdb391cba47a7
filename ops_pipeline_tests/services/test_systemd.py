"""What systemd says about a unit: recorded outputs of `systemctl show` and what they mean."""

from __future__ import annotations

import pytest

from ops_pipeline.services.states import DOWN, STARTING, STOPPED, UNKNOWN, UP, Look
from ops_pipeline.services.systemd import PROPERTIES, look_of, properties_of, sockets_of

NGINX = """\
Result=success
NRestarts=0
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
"""
FAILED = """\
Result=exit-code
NRestarts=5
LoadState=loaded
ActiveState=failed
SubState=failed
UnitFileState=enabled
"""
STOPPED_BY_HAND = """\
Result=success
NRestarts=0
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=enabled
"""
DISABLED = STOPPED_BY_HAND.replace("enabled", "disabled")
STATIC = STOPPED_BY_HAND.replace("enabled", "static")
TRANSIENT = STOPPED_BY_HAND.replace("=enabled", "=")
MASKED = """\
Result=success
NRestarts=0
LoadState=masked
ActiveState=inactive
SubState=dead
UnitFileState=masked
"""
MASKED_WHILE_FAILED = MASKED.replace("inactive", "failed").replace("dead", "failed")
MASKED_UNTIL_BOOT = MASKED.replace("=masked\nActive", "=loaded\nActive").replace("e=masked", "e=masked-runtime")
NOT_FOUND = """\
Result=success
NRestarts=0
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
"""
BROKEN_FILE = NOT_FOUND.replace("not-found", "bad-setting")
CRASH_LOOP = """\
Result=exit-code
NRestarts=672
LoadState=loaded
ActiveState=activating
SubState=auto-restart
UnitFileState=enabled
"""
CRASH_LOOP_254 = CRASH_LOOP.replace("auto-restart", "auto-restart-queued")
"""As systemd 254 and later name it, while the start waits for its turn."""
STARTS = CRASH_LOOP.replace("auto-restart", "start-pre").replace("exit-code", "success").replace("672", "0")
RELOADS = NGINX.replace("=active", "=reloading").replace("running", "reload")
STOPS = NGINX.replace("=active", "=deactivating").replace("running", "stop-sigterm")
EXITED = """\
Result=success
NRestarts=0
LoadState=loaded
ActiveState=active
SubState=exited
UnitFileState=enabled
"""
LIBVIRTD = """\
Result=success
NRestarts=0
LoadState=loaded
ActiveState=inactive
SubState=dead
UnitFileState=enabled
TriggeredBy=libvirtd-ro.socket libvirtd.socket libvirtd-admin.socket
"""
LOGROTATE = DISABLED + "TriggeredBy=logrotate.timer\n"
SOCKET = """\
Result=success
LoadState=loaded
ActiveState=active
SubState=listening
UnitFileState=enabled
"""


def look(output: str, *, socket_listens: bool = False) -> Look:
    return look_of("a.service", properties_of(output), socket_listens=socket_listens)


def more(sub: str, result: str, restarts: str) -> str:
    return f"a.service is {sub}, result {result}, restarted {restarts} times"


@pytest.mark.parametrize(
    ("output", "found", "reason"),
    [
        (NGINX, UP, "a.service is active (running)"),
        (EXITED, UP, "a.service is active (exited)"),
        (SOCKET, UP, "a.service is active (listening)"),
        (FAILED, DOWN, more("failed (failed)", "exit-code", "5")),
        (CRASH_LOOP, DOWN, more("activating (auto-restart)", "exit-code", "672")),
        (CRASH_LOOP_254, DOWN, more("activating (auto-restart-queued)", "exit-code", "672")),
        (STARTS, STARTING, more("activating (start-pre)", "success", "0")),
        (RELOADS, STARTING, more("reloading (reload)", "success", "0")),
        (STOPS, STARTING, more("deactivating (stop-sigterm)", "success", "0")),
        (STOPPED_BY_HAND, STOPPED, "a.service is inactive (dead), enabled"),
        (DISABLED, STOPPED, "a.service is inactive (dead), disabled"),
        (STATIC, STOPPED, "a.service is inactive (dead), static"),
        (TRANSIENT, STOPPED, "a.service is inactive (dead), no unit file"),
        (LIBVIRTD, STOPPED, "a.service is inactive (dead), enabled"),
        (LOGROTATE, STOPPED, "a.service is inactive (dead), disabled"),
        (MASKED, STOPPED, "a.service is masked"),
        (MASKED_WHILE_FAILED, STOPPED, "a.service is masked"),
        (MASKED_UNTIL_BOOT, STOPPED, "a.service is masked"),
        (NOT_FOUND, UNKNOWN, "systemd knows no unit a.service"),
        (BROKEN_FILE, UNKNOWN, "systemd cannot load a.service: bad-setting"),
        ("", UNKNOWN, "systemctl told nothing about a.service"),
        ("Failed to connect to bus: Host is down\n", UNKNOWN, "systemctl told nothing about a.service"),
    ],
)
def test_what_systemd_says_of_a_unit_is_understood(output: str, found: str, reason: str) -> None:
    """A unit that crashed 672 times was healthy, since it was never failed but always activating."""
    assert look(output) == Look(found, reason)


def test_a_service_that_its_socket_wakes_is_well_while_it_is_idle() -> None:
    """The daemon libvirtd ends itself after two minutes without work, and was started for it every five."""
    assert look(LIBVIRTD, socket_listens=True) == Look(UP, "a.service is idle, its socket listens")


@pytest.mark.parametrize(
    ("output", "found"), [(FAILED, DOWN), (CRASH_LOOP, DOWN), (MASKED, STOPPED), (NOT_FOUND, UNKNOWN), (NGINX, UP)]
)
def test_a_socket_that_listens_excuses_nothing_but_being_idle(output: str, found: str) -> None:
    assert look(output, socket_listens=True).found == found


def test_the_sockets_of_a_service_are_those_units_that_wake_it_and_are_sockets() -> None:
    assert sockets_of(properties_of(LIBVIRTD)) == ["libvirtd-ro.socket", "libvirtd.socket", "libvirtd-admin.socket"]
    assert sockets_of(properties_of(LOGROTATE)) == []
    assert sockets_of(properties_of(NGINX)) == []


def test_values_are_read_with_the_equals_signs_that_they_hold() -> None:
    assert properties_of("A=1\r\nB=x=y=\nno property\nC=\n") == {"A": "1", "B": "x=y=", "C": ""}


def test_every_property_that_is_understood_is_asked_for() -> None:
    told = {name for output in (FAILED, LIBVIRTD) for name in properties_of(output)}
    assert set(PROPERTIES) == told
