"""What errors of libvirt mean for an operator: what is wrong, and what to do.

What belongs here: words for errors. What does not: deciding anything by them. Imported by the processes that talk to
hosts, so nothing heavy is imported here.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

ADVICE = {
    1: "an error inside libvirt: look at the log of its daemon",
    3: "this libvirt cannot do what was asked: look at its version and at the URI's driver",
    5: "no connection: is the driver in the URI right, and is libvirt installed there?",
    8: "the URI cannot be used: correct it",
    38: "nothing answers: is libvirtd (or virtqemud) running there, and does the network let this machine through?",
    39: "the connection broke: the daemon ended or was restarted, look at its log",
    42: "the domain went away meanwhile",
    45: "access denied: check the user, the key or the certificate of this machine at the daemon",
    46: "access denied: check the user, the key or the certificate of this machine at the daemon",
    55: "the operation is not possible in the state the object has",
    61: "libvirt does not take this network filter",
    62: "there is no such network filter",
    67: "libvirt cannot do this here: look at its configuration",
    68: "libvirt gave up waiting: a domain or the host hangs, look there",
    84: "this libvirt cannot do what was asked: look at its version",
    88: "access denied by the daemon's access rules",
}
"""By libvirt's error number (`virErrorNumber`)."""


def explain(error: Exception, uri: str) -> str:
    """An error while talking to the host at `uri`, in words."""
    code = getattr(error, "get_error_code", None)
    place = shown(uri)
    if code is None:
        return f"{place}: {type(error).__name__}: {error}"
    number = code()
    advice = ADVICE.get(number, f"libvirt error {number}")
    return f"{place}: {advice} ({' '.join(str(error).split())})"


def late_text(uri: str, seconds: float, variable: str = "HYPERVISOR_DEADLINE_SECONDS") -> str:
    """That a host did not answer before its deadline, which a variable says."""
    return (
        f"{shown(uri)}: no answer within {seconds:g} s: its libvirt hangs, look at its daemon; a host that is only slow"
        f" needs a larger {variable}"
    )


def shown(uri: str) -> str:
    """A URI without a password."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "the URI, which cannot be read"
    if parts.password is None:
        return uri or "the empty URI"
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))
