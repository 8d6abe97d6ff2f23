"""`umount.nbdfs`: what umount(8) runs for a mount of nbdfs where it finds it as umount.fuse.nbdfs.

    umount.nbdfs FILE [-flnrv]      mount(8), "External helpers"

Unlike umount(8) alone it returns only when all is flushed and the process behind the mount has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdfs.cli import umount
from nbdfs.cli.main import Parser
from nbdfs.compat._mount8 import mount_errors


def run(words: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    parser = Parser(prog="umount.nbdfs", description=__doc__)
    add = parser.add_argument
    add("target", metavar="FILE", help="what is mounted")
    add("-l", dest="lazy", action="store_true", help="detach even while it is in use")
    for option in "fnrv":
        add(f"-{option}", action="store_true", help="accepted")
    add("-t", metavar="TYPE", help="accepted")
    arguments = parser.parse_args(words)
    with mount_errors():
        umount.end(arguments.target, lazy=arguments.lazy)
    return 0
