"""Prometheus' text exposition format, version 0.0.4: families of samples as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from nbdfs.records import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Sample(NamedTuple):
    """One value; `suffix` is added to the name of the family, as `_bucket` in a histogram."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Family(Record):
    """All samples of one name.  `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]

    def lines(self) -> Iterator[str]:
        """The family's lines, without their ends; none if it has no samples."""
        head = [f"# HELP {self.name} {self.help.translate(_HELP_ESCAPES)}", f"# TYPE {self.name} {self.kind}"]
        for sample in self.samples:
            yield from head
            head = []
            yield f"{self.name}{sample.suffix}{_labels(sample.labels)} {sample.value:.16g}"


def bucket_bound(seconds: float) -> str:
    """The label `le` of a histogram's bucket."""
    return f"{seconds:g}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_printable(value).translate(_ESCAPES)}"' for name, value in labels.items()) + "}"


def _printable(value: str) -> str:
    """File names need not be UTF-8; label values must be."""
    return value.encode(errors="surrogateescape").decode(errors="replace")
