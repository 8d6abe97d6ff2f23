"""Make the completions for bash, zsh and fish.

python packaging/completion.py FOLDER   write them under FOLDER, in the places where the shells look below /usr/share

The logic of each is a file in packaging/completion/; its tables are made here.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import commands
from commands import Argument, Command, Option

from nbdfs.registry import BOOLEAN, PATH, SPEC, Driver, Kind
from nbdfs.registry import Option as Key

TEMPLATES = Path(__file__).parent / "completion"
PLACES = {
    "bash": "bash-completion/completions/nbdfs",
    "zsh": "zsh/site-functions/_nbdfs",
    "fish": "fish/vendor_completions.d/nbdfs.fish",
}
KINDS = {id(PATH): "file", id(SPEC): "spec", id(BOOLEAN): "yes no"}

quote = shlex.quote


def all_commands() -> Iterator[Command]:
    """The commands, each followed by its actions."""
    for command in commands.commands():
        yield command
        yield from command.actions


def kind(thing: Option | Argument) -> str:
    """What to complete with: `file`, `spec`, `mount`, or the words there are with blanks between them."""
    return " ".join(thing.choices) or thing.kind


def argument_kind(command: Command) -> str:
    """What the arguments of a command are completed with.

    What takes a mount takes a file too, and NAME=SPEC; what takes a spec takes a file too.
    """
    kinds = {kind(argument): None for argument in command.arguments}
    return next((known for known in ("mount", "spec") if known in kinds), next(filter(None, kinds), ""))


def key_kind(value: Kind) -> str:
    """What to complete the value of a driver's option with."""
    return KINDS.get(id(value)) or (value.name.replace("|", " ") if "|" in value.name else "")


def key_word(key: Key) -> str:
    """A driver's option as it is written up to its value."""
    return key.name if key.kind is BOOLEAN else f"{key.name}="


def starts() -> Iterator[tuple[str, Driver]]:
    """The words that a spec may begin with."""
    for driver in commands.drivers():
        for word in commands.prefixes(driver):
            yield word, driver


def file_sources() -> list[str]:
    return [driver.name for driver in commands.drivers() if commands.takes_file(driver)]


def driver_values() -> Mapping[str, str]:
    return {
        f"{driver.name},{key.name}": key_kind(key.kind)
        for driver in commands.drivers()
        for key in driver.option_table
        if key_kind(key.kind)
    }


def driver_keys() -> Mapping[str, str]:
    return {driver.name: " ".join(map(key_word, driver.option_table)) for driver in commands.drivers()}


def bash() -> str:
    known = list(all_commands())
    return "\n".join(
        [
            f"_nbdfs_commands={quote(' '.join(command.name for command in commands.commands()))}",
            f"_nbdfs_starts={quote(' '.join(word for word, _ in starts()))}",
            f"_nbdfs_files={quote(' '.join(file_sources()))}",
            _bash_array("_nbdfs_actions", _actions(known)),
            _bash_array("_nbdfs_arguments", {command.name: argument_kind(command) for command in known}),
            _bash_array("_nbdfs_options", {command.name: " ".join(_bash_flags(command)) for command in known}),
            # An empty value says that there is one, which only its user knows.
            "declare -gA _nbdfs_options_values=(",
            *(
                f"    [{quote(f'{command.name} {flag}')}]={quote(kind(option))}"
                for command in known
                for option in command.options
                for flag in option.flags
                if option.value and not option.optional
            ),
            ")",
            _bash_array("_nbdfs_keys", driver_keys()),
            _bash_array("_nbdfs_values", driver_values()),
        ]
    )


def _bash_array(name: str, rows: Mapping[str, str]) -> str:
    lines = [f"    [{quote(key)}]={quote(value)}" for key, value in rows.items() if value]
    return "\n".join([f"declare -gA {name}=(", *lines, ")"])


def _actions(known: Iterable[Command]) -> Mapping[str, str]:
    return {command.name: " ".join(action.name.split()[1] for action in command.actions) for command in known}


def _bash_flags(command: Command) -> Iterator[str]:
    for option in command.options:
        valued = option.value and not option.optional
        yield from (f"{flag}=" if valued and flag.startswith("--") else flag for flag in option.flags)


def zsh() -> str:
    known = list(all_commands())
    names = "\n".join(f"    {quote(f'{command.name}:{command.summary}')}" for command in commands.commands())
    return "\n".join(
        [
            f"typeset -ga _nbdfs_commands=(\n{names}\n)",
            f"typeset -g _nbdfs_starts={quote(' '.join(word for word, _ in starts()))}",
            f"typeset -g _nbdfs_files={quote(' '.join(file_sources()))}",
            _zsh_array("_nbdfs_actions", _actions(known)),
            _zsh_array("_nbdfs_keys", driver_keys()),
            _zsh_array("_nbdfs_values", driver_values()),
            *map(_zsh_function, known),
        ]
    )


def _zsh_array(name: str, rows: Mapping[str, str]) -> str:
    """An associative array of zsh, where quotes of a subscript would be part of it."""
    return "\n".join(
        [f"typeset -gA {name}=(", *(f"    {quote(key)} {quote(rows[key])}" for key in rows if rows[key]), ")"]
    )


def _zsh_function(command: Command) -> str:
    rows = [row for option in command.options for row in _zsh_rows(option)]
    if argument_kind(command):
        rows.append(f"*:argument:{_zsh_action(argument_kind(command))}")
    lines = " \\\n".join(f"        {quote(row)}" for row in rows)
    return f"_nbdfs-{command.name.replace(' ', '-')}() {{\n    _arguments -s -S : \\\n{lines}\n}}"


def _zsh_rows(option: Option) -> Iterator[str]:
    """The specifications of _arguments for an option, one for each flag; unless repeatable they exclude each other."""
    text = re.sub(r"[]:[]", r"\\\g<0>", option.help)
    for flag in option.flags:
        long = flag.startswith("--")
        joint = "" if not option.value else ("=-" if long else "-") if option.optional else ("=" if long else "+")
        value = (
            f":{'' if not option.optional else ':'}{option.value}:{_zsh_action(kind(option))}" if option.value else ""
        )
        others = "*" if option.repeatable else f"({' '.join(option.flags)})"
        yield f"{others}{flag}{joint}[{text}]{value}"


def _zsh_action(kind: str) -> str:
    """The blank before a function keeps _arguments from putting words of its own between it and its argument."""
    return f" _nbdfs_kind {quote(kind)}" if kind else " "


def fish() -> str:
    return "\n".join(
        [
            f"set -g __nbdfs_files {' '.join(file_sources())}",
            _fish_function("__nbdfs_starts", [(word, driver.summary) for word, driver in starts()]),
            _fish_switch(
                "__nbdfs_keys",
                {d.name: [(key_word(key), key.help) for key in d.option_table] for d in commands.drivers()},
            ),
            _fish_switch("__nbdfs_values", {name: [(words, "")] for name, words in driver_values().items()}),
            *(
                f"complete -c nbdfs -n __nbdfs_at_end -a {command.name} -d {_fish(command.summary)}"
                for command in commands.commands()
            ),
            *(line for command in all_commands() for line in _fish_lines(command)),
        ]
    )


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_function(name: str, rows: Iterable[tuple[str, str]]) -> str:
    return f"function {name}\n{_fish_print(rows, 4)}\nend"


def _fish_print(rows: Iterable[tuple[str, str]], indent: int) -> str:
    lines = [f"printf '%s\\t%s\\n' {_fish(word)} {_fish(text)}" if text else f"echo {_fish(word)}"
             for word, text in rows]  # fmt: skip
    return "\n".join(" " * indent + line for line in lines)


def _fish_switch(name: str, cases: Mapping[str, list[tuple[str, str]]]) -> str:
    bodies = "\n".join(f"        case {key}\n{_fish_print(rows, 12)}" for key, rows in cases.items() if rows)
    return f"function {name}\n    switch $argv[1]\n{bodies}\n    end\nend"


def _fish_lines(command: Command) -> Iterator[str]:
    here = f"complete -c nbdfs -n '__nbdfs_at {command.name}'"
    for action in command.actions:
        yield (
            f"complete -c nbdfs -n '__nbdfs_at_end {command.name}' -a {action.name.split()[1]} "
            f"-d {_fish(action.summary)}"
        )
    for option in command.options:
        flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
        yield f"{here} {flags} {_fish_value(option)}-d {_fish(option.help)}"
    if argument_kind(command):
        yield f"{here} {_fish_offer(argument_kind(command))}"


def _fish_value(option: Option) -> str:
    if not option.value or option.optional:
        return ""
    return f"-r {_fish_offer(kind(option))} "


def _fish_offer(kind: str) -> str:
    return {"file": "-F", "spec": "-a '(__nbdfs_spec)'", "mount": "-a '(__nbdfs_mount)'", "": "-f"}.get(
        kind
    ) or f"-f -a {_fish(kind)}"


SHELLS: Mapping[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: completion.py FOLDER\n")
        return 2
    for shell, tables in SHELLS.items():
        file = Path(sys.argv[1]) / PLACES[shell]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((TEMPLATES / f"nbdfs.{shell}").read_text().replace("@TABLES@", tables()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
