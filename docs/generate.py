"""Fill the parts of the manual that the registry knows: the options table of every source and layer.

python docs/generate.py           write them
python docs/generate.py --check   write nothing; name what is missing or stale, with status 1
"""

from __future__ import annotations

import sys
from pathlib import Path

from nbdfs import registry
from nbdfs.registry import Driver, SourceDriver

DOCS = Path(__file__).parent
BEGIN, END = "<!-- options -->", "<!-- /options -->"


def page_of(driver: Driver) -> Path:
    """The manual page of a driver."""
    return DOCS / ("sources" if isinstance(driver, SourceDriver) else "layers") / f"{driver.name}.md"


def table(driver: Driver) -> str:
    """The options of a driver as Markdown."""
    if not driver.option_table:
        return "None.\n"
    rows = ["| option | type | default | |", "| --- | --- | --- | --- |"]
    for option in driver.option_table:
        cells = (f"`{option.name}`", option.kind.name, option.default_text, option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def filled(text: str, driver: Driver) -> str:
    """A page with its table in place; a ValueError if it has no place for one."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{table(driver)}{END}{tail}"


def main(check: bool) -> int:
    faults = []
    for driver in map(registry.find, registry.names()):
        page = page_of(driver)
        name = page.relative_to(DOCS.parent)
        if not page.exists():
            faults.append(f"{name} is missing")
            continue
        old = page.read_text()
        try:
            new = filled(old, driver)
        except ValueError:
            faults.append(f"{name} has no place for its options: {BEGIN} {END}")
            continue
        if new != old and check:
            faults.append(f"{name} is stale: run make docs")
        elif new != old:
            page.write_text(new)
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
