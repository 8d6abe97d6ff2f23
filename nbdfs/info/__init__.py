"""What a source is and can do: its facts, those of the NBD connection to it, and its map."""

from nbdfs.info.report import OTHER_NAMES, QUESTIONS, Report, open_mapped, report

__all__ = ["OTHER_NAMES", "QUESTIONS", "Report", "open_mapped", "report"]
