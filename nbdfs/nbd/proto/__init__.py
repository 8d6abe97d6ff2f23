"""The NBD protocol without I/O: bytes in, events out, and replies as bytes.  Knows nothing of sockets and tasks."""
