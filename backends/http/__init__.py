"""The `http` source: a file on a web server, read by ranges."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from nbdfs.backends.http.options import HttpOptions
from nbdfs.registry import OpenContext, SourceDriver
from nbdfs.source import Source


def _open(argument: str, options: HttpOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    from nbdfs.backends.http.opening import open_http

    return open_http(argument, options, context)


DRIVER = SourceDriver(
    "http",
    "a file on a web server, read by ranges",
    HttpOptions,
    "http",
    open=_open,
    argument="URL",
    schemes=("http", "https", "http+unix"),
)
