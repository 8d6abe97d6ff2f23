"""Copy any source to any other: what is a hole stays one, what succeeds is complete and flushed."""

from nbdfs.copying.options import CopyOptions, Summary
from nbdfs.copying.start import copy

__all__ = ["CopyOptions", "Summary", "copy"]
