"""Copy any source to any other: what is a hole stays one, what succeeds is complete and flushed."""

from nbdfs.copying.job import copy
from nbdfs.copying.options import CopyOptions, Summary

__all__ = ["CopyOptions", "Summary", "copy"]
