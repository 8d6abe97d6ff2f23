"""Fill the parts of the manual that the code knows: tables of options, lists of sources, layers and modules.

python docs/generate.py           write them
python docs/generate.py --check   write nothing; name what is missing or stale, with status 1
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nbdfs import registry
from nbdfs.fuse import options
from nbdfs.records import fields
from nbdfs.registry import Driver, SourceDriver

DOCS = Path(__file__).parent
FOLDERS = "sources", "layers"
PACKAGE = DOCS.parent / "nbdfs"
# What is in nbdfs/, by subject, in the order in which a reader may want it.
SUBJECTS = {
    "Sources, layers and how they are named": (
        "source spec registry plans stack open_sources checked errors captive secret relocate units parts metering"
    ),
    "Front ends, and what they share": (
        "fuse nbd export live names attributes mount barrier eager flights together throttle"
    ),
    "Commands": "cli compat config copying info dump stride",
    "A running process": "supervise systemd control metrics logs outbox lossy progress fetching",
    "What sources and layers share": "around window unpacking scratch budget keystream rangelock",
    "Tools": "ranges buffers mountpoint fileio pages libc nursery undo records",
}


def folder_of(driver: Driver) -> str:
    """Where the manual page of a driver is."""
    return "sources" if isinstance(driver, SourceDriver) else "layers"


def table(driver: Driver) -> str:
    """The options of a driver as Markdown."""
    if not driver.option_table:
        return "None.\n"
    rows = ["| option | type | default | |", "| --- | --- | --- | --- |"]
    for option in driver.option_table:
        cells = (f"`{option.name}`", option.kind.name, option.default_text, option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def index(folder: str) -> str:
    """The pages of a folder as Markdown."""
    drivers = [driver for driver in map(registry.find, registry.names()) if folder_of(driver) == folder]
    rows = [f"| [{driver.name}]({driver.name}.md) | {driver.summary} |" for driver in drivers]
    return "\n".join(["| | |", "| --- | --- |", *rows]) + "\n"


def summary_of(module: Path) -> str:
    """The first sentence of what a module or package says of itself."""
    source = module / "__init__.py" if module.is_dir() else module
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " ")


def modules() -> str:
    """What is in nbdfs/ as Markdown."""
    found = [*PACKAGE.glob("[!_]*.py"), *(path.parent for path in PACKAGE.glob("*/__init__.py"))]
    places = {path.stem: path for path in found if path.name != "backends"}  # there once it is installed
    named = " ".join(SUBJECTS.values()).split()
    if sorted(named) != sorted(places):
        raise SystemExit(f"docs/generate.py: SUBJECTS differs from nbdfs/ in {sorted({*named} ^ {*places})}")
    lines = []
    for subject, names in SUBJECTS.items():
        lines += [f"## {subject}", "", "| | |", "| --- | --- |"]
        for place in map(places.__getitem__, names.split()):
            lines.append(f"| `nbdfs/{place.name}{'/' * place.is_dir()}` | {summary_of(place)} |")
        lines.append("")
    return "\n".join(lines)


def mount_options() -> str:
    """The options of `nbdfs mount -o` as Markdown."""
    told = [*options.MEANINGS]
    if sorted(told) != sorted(fields(options.MountOptions)):
        raise SystemExit(f"docs/generate.py: MEANINGS lacks {sorted(set(fields(options.MountOptions)) - set(told))}")
    rows = [f"| {words} | {meaning} |" for words, meaning in options.spellings()]
    return "\n".join(["| `-o` | |", "| --- | --- |", *rows]) + "\n"


def modules_in(folder: str) -> str:
    """The modules of a folder, and of the folders in it, as Markdown."""
    place = DOCS.parent / folder
    found = sorted(place.glob("**/[!_]*.py"), key=lambda path: (len(path.parts), path))
    rows = [f"| `{path.relative_to(place)}` | {summary_of(path).replace('<', '&lt;')} |" for path in found]
    return "\n".join(["| module | subject |", "| --- | --- |", *rows]) + "\n"


def filled(text: str, mark: str, content: str) -> str:
    """A page with a generated part in place; a ValueError if it has no place for one."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n\n{content}\n{end}{tail}"


def parts() -> Iterator[tuple[Path, str, str]]:
    """Every generated part: its page, its mark, its content."""
    for driver in map(registry.find, registry.names()):
        yield DOCS / folder_of(driver) / f"{driver.name}.md", "options", table(driver)
    for folder in FOLDERS:
        yield DOCS / folder / "index.md", "index", index(folder)
    yield DOCS / "mount.md", "mount options", mount_options()
    yield DOCS / "internals" / "index.md", "modules", modules()
    for page in sorted((DOCS / "internals").glob("*.md")):
        for folder in re.findall(r"^<!-- modules (\S+) -->$", page.read_text(), re.MULTILINE):
            yield page, f"modules {folder}", modules_in(folder)


def main(check: bool) -> int:
    faults = []
    for page, mark, content in parts():
        name = page.relative_to(DOCS.parent)
        if not page.exists():
            faults.append(f"{name} is missing")
            continue
        old = page.read_text()
        try:
            new = filled(old, mark, content)
        except ValueError:
            faults.append(f"{name} has no place for its {mark}: <!-- {mark} --> <!-- /{mark} -->")
            continue
        if new != old and check:
            faults.append(f"{name} is stale: run make docs")
        elif new != old:
            page.write_text(new)
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
