"""Make the manual pages: one for each command, source and layer, and for each page of docs/ that is for users.

python packaging/manual.py FOLDER   write FOLDER/man1/nbdfs.1, FOLDER/man7/nbdfs-source-memory.7, ...
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import commands
import roff
from commands import Command, Group

import nbdfs
from nbdfs.registry import Driver, SourceDriver

DOCS = Path(__file__).parent.parent / "docs"
FOLDERS = {"sources": "nbdfs-source-", "layers": "nbdfs-layer-"}

# Pages of docs/ that describe something with a name and a section of its own.
OWN = {"config.md": ("nbdfs.toml", 5), "mount.nbdfs.md": ("mount.nbdfs", 8)}
# The page of docs/ that tells more of commands which have none of their own.
ABOUT = {
    "nbd.md": ("serve",),
    "live.md": ("add", "remove", "resize", "list", "top"),
    "config.md": ("up", "reload", "check"),
    "mount.md": ("run", "umount"),
    "spec.md": ("sources",),
    "layers/luks.md": ("luks",),
    "layers/cow.md": ("commit",),
}
ALIASES = {"mount.nbdfs": ("umount.nbdfs", "mount.fuse.nbdfs", "umount.fuse.nbdfs")}


def pages() -> Iterator[tuple[str, int, str]]:
    """Every page: its name, its section and its text."""
    known = commands.commands()
    yield "nbdfs", 1, _overview(known)
    for command in known:
        yield f"nbdfs-{command.name}", 1, _command_page(command)
    for driver in commands.drivers():
        yield _driver_name(driver), 7, _driver_page(driver)
    for file, (name, number) in places().items():
        if "/" not in file and number != 1:
            yield name, number, _document_page(file, name, number)


def places() -> Mapping[str, tuple[str, int]]:
    """The name and section of the manual page that each file of docs/ becomes, or becomes a part of."""
    known = [command.name for command in commands.commands()]
    found = {}
    for path in sorted([*DOCS.glob("*.md"), *(page for folder in FOLDERS for page in (DOCS / folder).glob("*.md"))]):
        folder, name = path.parent.name, path.stem
        if path.name == "index.md":
            continue
        if folder in FOLDERS:
            place = f"{FOLDERS[folder]}{name}", 7
        elif path.name in OWN:
            place = OWN[path.name]
        else:
            place = f"nbdfs-{name}", 1 if name in known else 7
        found[path.relative_to(DOCS).as_posix()] = place
    return found


def _driver_folder(driver: Driver) -> str:
    return "sources" if isinstance(driver, SourceDriver) else "layers"


def _driver_name(driver: Driver) -> str:
    return FOLDERS[_driver_folder(driver)] + driver.name


def _start(name: str, number: int, summary: str) -> str:
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    return (
        roff.title(name, number, date, nbdfs.__version__)
        + roff.section("Name")
        + f"{roff.escaped(name)} \\- {roff.escaped(summary.rstrip('.'))}\n"
    )


def _body(file: str, markdown: str) -> str:
    return roff.body(markdown, partial(_resolved, file))


def _resolved(file: str, target: str) -> str:
    """What a reader sees of a link: the manual page, or the address; nothing for what is only in the source tree."""
    if "://" in target:
        return target
    place = places().get(posixpath.normpath(posixpath.join(posixpath.dirname(file), target.partition("#")[0])))
    return f"{place[0]}({place[1]})" if place else ""


def _sections(file: str) -> Mapping[str, str]:
    """The parts of a page by their heads, in order; what is before the first one is under the empty head."""
    text = (DOCS / file).read_text()
    _, *parts = re.split(r"^(?:#|##) (.*)\n", text, flags=re.MULTILINE)
    heads, texts = parts[::2], parts[1::2]
    return dict(zip(["", *heads[1:]], texts, strict=True))


def _overview(known: list[Command]) -> str:
    text = _start("nbdfs", 1, "any block source as an ordinary file, and over NBD")
    text += roff.section("Synopsis") + f".B nbdfs\n{roff.escaped('COMMAND [OPTION]... [ARGUMENT]...')}\n"
    text += roff.section("Description") + roff.escaped(nbdfs.__doc__ or "") + "\n"
    text += roff.section("Commands")
    text += "".join(roff.item(roff.bold(f"nbdfs-{command.name}") + "(1)", command.summary) for command in known)
    for head, is_source in ("Sources", True), ("Layers", False):
        text += roff.section(head)
        for driver in commands.drivers():
            if isinstance(driver, SourceDriver) == is_source:
                text += roff.item(f"{roff.bold(_driver_name(driver))}(7)", driver.summary)
    text += roff.section("Exit status")
    text += roff.item("0", "success") + roff.item("1", "failure") + roff.item("2", "wrong usage")
    others = [f"{roff.bold(name)}({number})" for name, number in places().values() if not name.startswith(
        tuple(FOLDERS.values())) and number != 1]  # fmt: skip
    return text + roff.section("See also") + ",\n".join(others) + "\n"


def _command_page(command: Command) -> str:
    file = f"{command.name}.md"
    told = _sections(file) if (DOCS / file).exists() else {}
    text = _start(f"nbdfs-{command.name}", 1, command.summary)
    text += roff.section("Synopsis") + "".join(map(_synopsis, command.actions or [command]))
    text += roff.section("Description")
    text += _body(file, told.get("Description", command.description))
    if any(argument.help for argument in command.arguments):
        text += roff.section("Arguments")
        for argument in command.arguments:
            text += roff.item(roff.bold(argument.word + argument.more), argument.help)
    text += roff.section("Options") + "".join(map(_group, command.groups))
    for action in command.actions:
        text += f".SS {roff.quoted(f'nbdfs {action.name}')}\n{roff.escaped(action.summary)}\n"
        text += "".join(_group(group, with_help=False) for group in action.groups)
    # The table of options comes from argparse; what the page says beside it stays.
    beside = re.sub(r"^\|.*\n", "", told.get("Options", ""), flags=re.MULTILINE)
    text += _body(file, beside)
    for head in told:
        if head not in ("", "Synopsis", "Description", "Options", "See also"):
            text += roff.section(head) + _body(file, told[head])
    text += roff.section("See also")
    if "See also" in told:
        text += _body(file, told["See also"])
    for page, names in ABOUT.items():
        if command.name in names:
            name, number = places()[page]
            text += f".PP\n{roff.bold(name)}({number})\n"
    return text + ".PP\n\\fBnbdfs\\fR(1)\n"


def _synopsis(command: Command) -> str:
    words = [f"{'[' * argument.optional}{argument.word}{']' * argument.optional}{argument.more}"
             for argument in command.arguments]  # fmt: skip
    return f".PP\n{roff.bold(f'nbdfs {command.name}')} {roff.escaped(' '.join(['[OPTION]...', *words]))}\n"


def _group(group: Group, *, with_help: bool = True) -> str:
    text = f".SS {roff.quoted(group.title)}\n" if group.title else ""
    for option in group.options:
        if "-h" in option.flags and not with_help:
            continue
        tags = []
        for flag in option.flags:
            value = f"\\fI{roff.escaped(option.value)}\\fR" if option.value else ""
            joint = "=" if flag.startswith("--") else "" if option.optional else " "
            tag = f"{joint}{value}" if value else ""
            tags.append(roff.bold(flag) + (f"[{tag}]" if tag and option.optional else tag))
        text += roff.item(", ".join(tags), option.help)
    return text


def _driver_page(driver: Driver) -> str:
    file = f"{_driver_folder(driver)}/{driver.name}.md"
    if (DOCS / file).exists():
        before, _, after = re.split(r"<!-- /?options -->\n", (DOCS / file).read_text())
    else:  # of another package
        before, after = f"\n\n## Synopsis\n    {driver.synopsis}\n\n## Options\n", "\n## See also\n"
    text = _start(_driver_name(driver), 7, driver.summary) + _body(file, before.split("\n", 2)[2])
    for option in driver.option_table:
        default = f" (default {option.default_text})" if option.default_text else ""
        tag = f"{roff.bold(option.name)}=\\fI{roff.escaped(option.kind.name)}\\fR"
        text += roff.item(tag, option.help + default)
    if not driver.option_table:
        text += "None.\n"
    return text + _body(file, after) + ".PP\n\\fBnbdfs\\fR(1), \\fBnbdfs\\-spec\\fR(7)\n"


def _document_page(file: str, name: str, number: int) -> str:
    text = (DOCS / file).read_text()
    head, rest = text.split("\n", 1)
    summary = roff.plain(head.removeprefix("# "))
    if summary[1:2].islower():
        summary = summary[0].lower() + summary[1:]
    first = "" if rest.lstrip().startswith("## ") else roff.section("Description")
    text = _start(name, number, summary) + first + _body(file, rest)
    return text if re.search(r'^\.SH "SEE ALSO"', text, re.MULTILINE) else (
        text + roff.section("See also") + "\\fBnbdfs\\fR(1)\n")  # fmt: skip


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: manual.py FOLDER\n")
        return 2
    for name, number, text in pages():
        folder = Path(sys.argv[1]) / f"man{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for word in (name, *ALIASES.get(name, ())):
            (folder / f"{word}.{number}").write_text(roff.tidied(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
