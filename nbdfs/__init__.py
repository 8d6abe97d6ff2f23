"""nbdfs shows any block source as an ordinary file, and serves the same bytes over NBD."""

__version__ = "0.1.0"
