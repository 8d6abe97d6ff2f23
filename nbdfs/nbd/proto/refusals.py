"""The error replies to options, in words."""

from __future__ import annotations

from nbdfs.nbd.proto import constants as nbd

_REASONS = {
    nbd.REP_ERR_UNSUP: "it does not know that option",
    nbd.REP_ERR_POLICY: "its policy forbids that",
    nbd.REP_ERR_INVALID: "it calls the request invalid",
    nbd.REP_ERR_PLATFORM: "its platform cannot do that",
    nbd.REP_ERR_UNKNOWN: "there is no such export",
    nbd.REP_ERR_SHUTDOWN: "it is shutting down",
    nbd.REP_ERR_BLOCK_SIZE_REQD: "it wants its block sizes asked for",
    nbd.REP_ERR_TOO_BIG: "the request is too big for it",
}


class RefusedError(Exception):
    """The server cannot be used so; the message goes on after its name.  `reply` is its NBD_REP_ERR, if it sent one."""

    def __init__(self, message: str, reply: int = 0) -> None:
        super().__init__(message)
        self.reply = reply


def refusal(option: int, kind: int, text: str) -> RefusedError:
    """What an error reply of that kind, with its text, means for who sent the option."""
    if kind == nbd.REP_ERR_TLS_REQD:
        return RefusedError("requires TLS: use nbds instead of nbd", kind)
    if option == nbd.OPT_STARTTLS and kind != nbd.REP_ERR_SHUTDOWN:
        return RefusedError("does not do TLS: use nbd instead of nbds, if that is acceptable", kind)
    reason = _REASONS.get(kind, f"error {kind & 0xFF}")
    return RefusedError(f"refuses: {reason}" + (f" ({text})" if text else ""), kind)


def no_such_export(name: str, there: list[str]) -> RefusedError:
    """There is no export of that name, but those that are `there`."""
    names = [f"'{other}'" for other in there]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return RefusedError(f"has no export '{name}'" + (f"; it has {shown}" if names else ""), nbd.REP_ERR_UNKNOWN)
