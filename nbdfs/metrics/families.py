"""What is told of exports, the layers of each, and the process.

Names follow Prometheus' conventions: base units, `_total` for what only grows.  A series of an operation appears with
its first request, so that a thousand idle exports cost little.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import nbdfs
from nbdfs.export import Export
from nbdfs.metering import BOUNDS, Figures
from nbdfs.metrics.text import Family, Sample, bucket_bound
from nbdfs.parts import STATISTICS, Part
from nbdfs.source import Health

Labels = Mapping[str, str]


def families(exports: Iterable[Export]) -> Iterator[Family]:
    """Everything that is told.

    Samples are made one by one as they are asked for, and exports may come, go and count on between any two.
    """
    yield from _exports(exports)
    yield from _layers(exports)
    yield from _statistics(exports)
    yield from _process()


# Exports


def _exports(exports: Iterable[Export]) -> Iterator[Family]:
    yield Family("nbdfs_export_info", "gauge", "The exports, with the spec of each without its secrets.",
                 (Sample({"export": export.name, "spec": export.description}, 1) for export in exports))  # fmt: skip
    yield Family("nbdfs_export_size_bytes", "gauge", "Size of the device.",
                 (Sample(_label(export), export.source.info.size) for export in exports))  # fmt: skip
    yield Family("nbdfs_export_state", "gauge", "1 for the state that the export is in, 0 for the others.",
                 (Sample(_label(export) | {"state": state.value}, export.source.health() is state)
                  for export in exports for state in Health))  # fmt: skip


def _label(export: Export) -> dict[str, str]:
    return {"export": export.name}


# Requests, at the boundary above each layer


def _layers(exports: Iterable[Export]) -> Iterator[Family]:
    yield Family("nbdfs_request_bytes_total", "counter", "Bytes of the requests that succeeded.",
                 (Sample(labels, figures.bytes) for labels, figures in _used(exports)))  # fmt: skip
    yield Family("nbdfs_request_errors_total", "counter",
                 "Requests that failed, by the name of the errno; cancelled: nobody waited for the answer any more.",
                 (Sample({**labels, "error": name}, count)
                  for labels, figures in _used(exports) for name, count in list(figures.errors.items())))  # fmt: skip
    yield Family("nbdfs_requests_in_flight", "gauge", "Requests that wait for an answer.",
                 (Sample(labels, figures.in_flight) for labels, figures in _used(exports)))  # fmt: skip
    yield Family("nbdfs_request_duration_seconds", "histogram",
                 "Requests, failed ones too, by the time they took; reads from memory at once are in the first bucket.",
                 (sample for labels, figures in _used(exports) for sample in _histogram(labels, figures)))  # fmt: skip


def _used(exports: Iterable[Export]) -> Iterator[tuple[Labels, Figures]]:
    for labels, part in _parts(exports):
        if part.meter:
            for operation, figures in part.meter.operations.items():
                if figures.requests or figures.in_flight:
                    yield {**labels, "operation": operation}, figures


def _parts(exports: Iterable[Export]) -> Iterator[tuple[Labels, Part]]:
    """Each layer, with its place in the stack: 0 is what the front ends see."""
    for export in exports:
        for depth, part in enumerate(export.source.parts):
            yield {"export": export.name, "layer": part.name, "depth": str(depth)}, part


def _histogram(labels: Labels, figures: Figures) -> Iterator[Sample]:
    *counts, total = accumulate(figures.buckets)
    for bound, count in zip(BOUNDS, counts, strict=True):
        yield Sample({**labels, "le": bucket_bound(bound)}, count, "_bucket")
    yield Sample({**labels, "le": "+Inf"}, total, "_bucket")
    yield Sample(labels, figures.seconds, "_sum")
    yield Sample(labels, total, "_count")


# What sources tell of themselves


def _statistics(exports: Iterable[Export]) -> Iterator[Family]:
    found: dict[str, list[Sample]] = {}
    for labels, part in _parts(exports):
        for name, value in part.statistics().items():
            found.setdefault(name, []).append(Sample(labels, value))
    for name, samples in sorted(found.items()):
        kind = "counter" if name.endswith("_total") else "gauge"
        yield Family(f"nbdfs_source_{name}", kind, STATISTICS.get(name, "A figure of the source's own."), samples)


# The process, under the names that all Prometheus clients use


def _process() -> Iterator[Family]:
    user, system, start, virtual, resident = _own_stat()
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    single = (
        ("process_cpu_seconds_total", "counter", "CPU time, user and system, in seconds.", user + system),
        ("process_start_time_seconds", "gauge", "Start time since the Unix epoch in seconds.", start),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", virtual),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", resident),
        ("process_open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd"))),
        ("process_max_fds", "gauge", "Most file descriptors there may be.", most_files),
    )  # fmt: skip
    for name, kind, text, value in single:
        yield Family(name, kind, text, [Sample({}, value)])
    yield Family("nbdfs_build_info", "gauge", "The version.", [Sample({"version": nbdfs.__version__}, 1)])


def _own_stat() -> tuple[float, float, float, float, float]:
    """User and system time and start (seconds), virtual and resident memory (bytes): proc_pid_stat(5)."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()  # from the third on: the second is a name with anything in it
    with open("/proc/stat", encoding="ascii") as file:
        boot = next(float(line.split()[1]) for line in file if line.startswith("btime "))
    ticks = os.sysconf("SC_CLK_TCK")
    user, system, start, virtual, pages = (float(fields[number - 3]) for number in (14, 15, 22, 23, 24))
    return user / ticks, system / ticks, boot + start / ticks, virtual, pages * os.sysconf("SC_PAGE_SIZE")
