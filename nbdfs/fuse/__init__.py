"""The FUSE front end: a mounted file in two planes (docs/internals/fuse.md)."""
