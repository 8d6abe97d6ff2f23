"""Copy any source to any other: what is a hole stays one, what succeeds is complete and flushed."""

from nbdfs.copying.job import CopyOptions, Summary, copy

__all__ = ["CopyOptions", "Summary", "copy"]
