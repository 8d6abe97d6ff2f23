"""The `error` layer: requests that fail at random, or while a file exists, to test what stands above."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from nbdfs.around import OPERATIONS, AroundLayer, Request
from nbdfs.errors import SourceError, UsageError
from nbdfs.records import record
from nbdfs.registry import INTEGER, PATH, Kind, LayerDriver, OpenContext, choice, option
from nbdfs.source import Source

T = TypeVar("T")


def parse_rate(text: str) -> float:
    """A probability: `0.1` or `10%`."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        rate = float(number) / (100 if percent else 1)
    except ValueError:
        rate = -1
    if not 0 <= rate <= 1:
        raise UsageError(f"'{text}' is no rate: write 0% to 100%, or 0 to 1")
    return rate


RATE = Kind("RATE", parse_rate)
ERRNO = choice("EPERM", "EIO", "ENOMEM", "EINVAL", "ENOSPC", "EOVERFLOW", "ENOTSUP", "ESHUTDOWN")


class Fault(NamedTuple):
    """Fail with `number` at the given `rate`, and only while `file` exists if one is named."""

    number: int
    rate: float
    file: str | None


class Error(AroundLayer):
    """`below`, where requests fail; one that fails does not reach it."""

    def __init__(self, below: Source, faults: dict[str, Fault], seed: int | None) -> None:
        super().__init__(below)
        self._faults = faults
        self._random = random.Random(seed)  # noqa: S311 - chance, not secrecy

    async def around(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        number, rate, file = self._faults[request.operation]
        if rate and self._random.random() < rate and (not file or os.path.exists(file)):
            raise SourceError(number, f"{os.strerror(number)} (injected into {request.operation})", where="error")
        return await call()


def _fields() -> dict[str, Any]:
    found = {
        "errno": option("EIO", ERRNO, "the error of what fails"),
        "rate": option(0.0, RATE, "how often requests fail: 0 to 1, or 0% to 100%"),
        "file": option("", PATH, "fail only while this file exists"),
        "seed": option(None, INTEGER, "what repeats the same failures for the same requests"),
    }
    for name in OPERATIONS:
        found[f"{name}_errno"] = option(None, ERRNO, f"as errno, for {name} requests")
        found[f"{name}_rate"] = option(None, RATE, f"as rate, for {name} requests")
        found[f"{name}_file"] = option(None, PATH, f"as file, for {name} requests")
    return found


ErrorOptions = record("ErrorOptions", _fields())


def _open(below: Source, options: Any, context: OpenContext) -> Source:
    def chosen(operation: str, name: str) -> Any:
        own = getattr(options, f"{operation}_{name}")
        return getattr(options, name) if own is None else own

    faults = {
        operation: Fault(
            getattr(errno, chosen(operation, "errno")), chosen(operation, "rate"), chosen(operation, "file")
        )
        for operation in OPERATIONS
    }
    return Error(below, faults, options.seed)


DRIVER = LayerDriver("error", "requests that fail at random, or while a file exists", ErrorOptions, open=_open)
