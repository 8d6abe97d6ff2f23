"""Begin a copy the way that its ends allow."""

from __future__ import annotations

from nbdfs.copying import direct, files
from nbdfs.copying.options import Begun, CopyOptions, Summary
from nbdfs.plans import plan
from nbdfs.progress import Display
from nbdfs.spec import Spec


def copy(source: Spec, destination: Spec, options: CopyOptions, display: Display | None = None) -> Summary:
    """Copy one spec to another; `-` is a standard stream, `null:` takes everything.

    On return the copy is complete and flushed.  Raises UserError, one line, if it is not; the line says so when the
    destination was changed.  SIGINT, SIGTERM and SIGHUP stop a copy that way too.
    """
    options.check()
    begun = Begun()
    if not (files.is_standard_stream(source) or files.is_standard_stream(destination) or files.is_null(source)):
        target = None if files.is_null(destination) else plan(destination)
        outcome = direct.attempt(plan(source), target, options, display)
        if isinstance(outcome, Summary):
            return outcome
        begun = outcome
    import trio

    from nbdfs.copying import job

    return trio.run(job.copy, source, destination, options, display, begun)
