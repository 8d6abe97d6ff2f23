"""The subcommands, each with its one line of help: to show them none need be imported."""

from __future__ import annotations

from collections.abc import Mapping

COMMANDS: Mapping[str, str] = {
    "add": "add files to a mount",
    "check": "check a configuration file",
    "commit": "write an overlay back into what it lies over",
    "compat": "run the command line of nbdkit, nbdfuse or a tool of libnbd",
    "copy": "copy one source to another",
    "dump": "show the bytes of a source in hex",
    "info": "say what a source is, or show its map",
    "list": "list mounts, servers and their files",
    "luks": "LUKS headers: show, make, change passphrases",
    "mount": "show a source as a file",
    "reload": "apply changes of the configuration",
    "remove": "remove files from a mount",
    "resize": "change the size of a file in a mount",
    "run": "run a command on a source that is mounted for it",
    "serve": "serve a source over NBD",
    "sources": "list the sources and layers there are, with their options",
    "top": "watch the files of all mounts at work",
    "umount": "end a mount",
    "up": "bring up the mounts and servers of the configuration",
}
