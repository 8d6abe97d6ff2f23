"""`mount.nbdfs`: what mount(8) runs for `mount -t nbdfs SPEC FILE -o OPTIONS`, and for such a line of fstab.

    mount.nbdfs SPEC FILE [-fnsv] [-o OPTIONS]      mount(8), "External helpers"

OPTIONS are those of `nbdfs mount -o` and its long options without the dashes (listen=URI, tls=require, log-file=FILE),
config=FILE, and remount.  It returns when the mount is up.
"""

from __future__ import annotations

import argparse
import errno
import re
from collections.abc import Iterator, Sequence

from nbdfs.cli.main import Parser, parser_of
from nbdfs.compat._mount8 import mount_errors
from nbdfs.config.files import current, use_file
from nbdfs.config.stacks import plans, secrets
from nbdfs.errors import UserError
from nbdfs.fuse.options import field_of, is_for_others
from nbdfs.names import named_plans, specs_by_name

# Of `nbdfs mount`: what makes no sense in fstab, or has another form there.
_NOT_HERE = {"help", "background", "options", "config", "verbose"}


def run(words: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    arguments = _parser().parse_args(words)
    with mount_errors():
        _mount(arguments)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="mount.nbdfs", description=__doc__)
    add = parser.add_argument
    add("spec", metavar="SPEC", help="a source, or NAME=SPEC for files of a directory, with blanks between several")
    add("target", metavar="FILE", help="what is covered")
    add("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see above")
    add("-f", dest="fake", action="store_true", help="check the options only")
    add("-s", dest="sloppy", action="store_true", help="leave out options that are not known")
    add("-n", action="store_true", help="accepted; nothing is written to /etc/mtab anyway")
    add("-t", metavar="TYPE", help="accepted; the type is fuse.nbdfs")
    add("-v", dest="verbose", action="count", default=0, help="say more")
    return parser


def _mount(arguments: argparse.Namespace) -> None:
    own, ours, remount = _sorted_out(arguments.options, sloppy=arguments.sloppy)
    if remount:
        _remount(arguments.target, own)
        return
    from nbdfs.cli import mount

    parser = parser_of("mount")
    front, specs, name = _sources(arguments.spec)
    options = [*own.values(), *([] if "fsname" in own else _fsname(arguments.spec, specs))]
    escaped = [option.replace(",", "\\,") for option in options]
    words = [*front, *ours, *(f"--options={option}" for option in escaped), *["-v"] * arguments.verbose]
    found = parser.parse_args([*words, "--background", "--", *specs, arguments.target])
    found.configured = name
    if not arguments.fake:
        mount.run(found)


def _sorted_out(texts: Sequence[str], *, sloppy: bool) -> tuple[dict[str, str], list[str], bool]:
    """The mount options, by the field they set, the words of `nbdfs mount`, and whether it is a remount.

    Of options that contradict each other the last one holds, as mount(8) has it.
    """
    actions = parser_of("mount").long_options()
    own: dict[str, str] = {}
    words: list[str] = []
    remount = False
    for item in _items(texts):
        key = item.partition("=")[0]
        if key == "remount":
            remount = True
        elif key == "config":
            use_file(item.partition("=")[2])
        elif key in actions and key not in _NOT_HERE:
            words.append(f"--{item}")
        elif not is_for_others(key) and (field_of(key) or not sloppy):
            own[field_of(key) or key] = item
    if own.get("readonly") == "rw" and not remount:
        del own["readonly"]  # mount(8) says so whenever nobody says ro
    return own, words, remount


def _items(texts: Sequence[str]) -> Iterator[str]:
    """The options of comma lists; a comma between double quotes is part of a value."""
    for text in texts:
        for item in re.findall(r'(?:[^,"]|"[^"]*"|")+', text):
            yield item.replace('"', "")


def _sources(spec: str) -> tuple[Sequence[str], list[str], str]:
    """Words before the options, the specs, and the name in the configuration, of field 1 of fstab."""
    name = spec.removeprefix("conf:")
    if name != spec and name not in (config := current()).stacks and name in config.commands:
        command = config.command(name)
        if command.kind == "mount":
            return command.options, command.specs, name
    words = spec.split()
    try:
        specs_by_name(words)
    except UserError:
        return (), [spec], ""
    return (), words, ""


def _fsname(spec: str, specs: Sequence[str]) -> list[str]:
    """The option by which the mount table shows field 1 as it stands in fstab, so that `mount -a` finds it again.

    Not if there is a secret in it.
    """
    planned = [part for whole in named_plans(specs).values() for part in plans(whole)]
    if any(secret.is_literal for part in planned for _, secret in secrets(part)):
        return []
    return [f"fsname={spec}"]


def _remount(target: str, own: dict[str, str]) -> None:
    """Change ro, rw and the other flags of mount(2) of a mount that is there."""
    from nbdfs import libc
    from nbdfs.fuse import mounting
    from nbdfs.fuse.options import parse_options

    mount = mounting.find_mount(target)
    if mount is None or not mount.is_fuse:
        raise UserError(f"{target} is no mount of nbdfs: nothing to remount")
    # Among what mount(8) passes are options of the kernel's, from the mount table.
    options = parse_options(item for item in own.values() if field_of(item.partition("=")[0]))
    if not options.readonly:
        _check_writable(target)
    try:
        libc.remount(target, options.mount_flags)
    except OSError as error:
        hint = {errno.EBUSY: ": a file is open for writing", errno.EPERM: ": only root may do that"}
        raise UserError(f"cannot remount {target}: {error.strerror}{hint.get(error.errno or 0, '')}") from error


def _check_writable(target: str) -> None:
    from nbdfs.control.client import find_process

    exports = find_process(target, "list").facts["exports"]
    if exports and not any(export["writable"] for export in exports):
        raise UserError(f"{target} was mounted read-only, and so its sources are open: unmount it and mount it again")
