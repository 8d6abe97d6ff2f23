"""What goes over a control socket: JSON-RPC 2.0 (jsonrpc.org), one message a line.  No I/O.

A request names its parameters; one without an id is a notification, which gets no reply (section 4.1).
An error's code is one of the specification's, or the exit status that the command shall end with.
A line from a client has at most LONGEST_REQUEST bytes; replies have no such limit.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any

from nbdfs.records import Record, field

LONGEST_REQUEST = 64 << 10  # bytes


class Code(enum.IntEnum):
    """JSON-RPC 2.0, section 5.1; FAILURE and USAGE are ours."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    FAILURE = 1
    USAGE = 2


class RequestError(Exception):
    """A request that is answered by an error.  `id` is the request's, where it could be read."""

    def __init__(self, code: int, message: str, id: int | str | None = None, *, notification: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.id = id
        self.notification = notification


class Request(Record):
    """A call of a method; `id` comes back in its reply."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    id: int | str | None = None
    notification: bool = False  # nobody waits for a reply

    def encode(self) -> bytes:
        message = {"method": self.method, "params": self.params}
        return _line(message if self.notification else {**message, "id": self.id})


def parse_request(line: bytes) -> Request:
    """Read a line from a client.  Raises RequestError, whatever the bytes are."""
    try:
        message = json.loads(line, parse_constant=_refuse)
        json.dumps(message, ensure_ascii=False).encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise RequestError(Code.PARSE_ERROR, "half a surrogate pair is no character") from None
    except (ValueError, RecursionError):
        raise RequestError(Code.PARSE_ERROR, "this is no JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("method"), str):
        raise RequestError(Code.INVALID_REQUEST, "this is no request: an object with a method is one")
    number, params, notification = message.get("id"), message.get("params", {}), "id" not in message
    if isinstance(number, bool) or not isinstance(number, int | str | None):
        raise RequestError(Code.INVALID_REQUEST, "an id is a number or a string")
    if not isinstance(params, dict):
        raise RequestError(Code.INVALID_PARAMS, "parameters are given by name", number, notification=notification)
    return Request(message["method"], params, number, notification)


def result(request: Request, value: object) -> bytes:
    """The reply to a request that was carried out; empty if there is to be none."""
    if request.notification:
        return b""
    return _line({"result": value, "id": request.id})


def failure(request: Request | None, error: RequestError) -> bytes:
    """The reply to a request that was not; empty if there is to be none."""
    if error.notification or (request and request.notification):
        return b""
    return _line({"error": {"code": error.code, "message": str(error)}, "id": request.id if request else error.id})


def parse_reply(line: bytes) -> Any:
    """The result in a reply.  Raises RequestError if there is an error in it, ValueError if it is no reply."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("no reply")
    if "result" in message:
        return message["result"]
    error = message.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("code"), int):
        raise ValueError("no reply")
    raise RequestError(error["code"], str(error.get("message")))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")  # Python reads and writes NaN and Infinity


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
