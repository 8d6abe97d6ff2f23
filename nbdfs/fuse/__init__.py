"""The FUSE front end: a mounted file in two planes."""
