"""The `nbdfs` command: find the subcommand, parse, run it, turn errors into one line and an exit status."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import gc
import importlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

import nbdfs
from nbdfs import logs
from nbdfs.cli._commands import COMMANDS
from nbdfs.errors import UsageError, UserError, leaves, printable
from nbdfs.registry import nearest
from nbdfs.spec import fold_captives

log = logging.getLogger(__name__)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as it is written, as wide as the terminal.

    argparse makes one for each option that is added, and finds the width by a module that imports compression.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)

    # argparse writes `--map [CONTEXT]` for what `Parser.prepare` takes as `--map[=CONTEXT]`, `...` alone for the words
    # of a command, and says once more what a metavar says by itself: `SPEC... FILE [SPEC... FILE ...]`.

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        if _may_have_value(action):
            return text.replace("[", "[=", 1)
        if isinstance(action.metavar, str) and (action.nargs == argparse.REMAINDER or "..." in action.metavar):
            return action.metavar
        return text

    def _format_usage(self, *arguments: Any) -> str:
        return super()._format_usage(*arguments).replace(" [=", "[=")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return super()._format_action_invocation(action).replace(" [=", "[=")


def _may_have_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs == argparse.OPTIONAL


def _columns() -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns) or 80
    return 80


class Parser(argparse.ArgumentParser):
    """argparse that reports through UsageError, so that every error looks alike."""

    def __init__(self, **how: Any) -> None:
        super().__init__(formatter_class=_Formatter, **how)

    def prepare(self, words: Sequence[str]) -> list[str]:
        """The words as they are parsed: captive servers are folded, and an option is given the value that it left out.

        argparse would take the next word, a spec, for the value.
        """
        folded = fold_captives(words)
        end = folded.index("--") if "--" in folded else len(folded)
        behind = folded[end + 1 :]
        if not any(action.nargs == argparse.REMAINDER for action in self._actions):
            behind = fold_captives(behind)
        return [*map(self._with_value, folded[:end]), *folded[end : end + 1], *behind]

    def _with_value(self, word: str) -> str:
        """An option with the value that it left out, as `--option=VALUE`; anything else as it is."""
        action = self._option_string_actions.get(word)
        if action is None and word.startswith("--") and "=" not in word and len(word) > 2:
            found = self._get_option_tuples(word)
            action = found[0][0] if len(found) == 1 else None
        return f"{action.option_strings[-1]}={action.const}" if action and _may_have_value(action) else word

    def _get_option_tuples(self, option_string: str) -> list[tuple[argparse.Action, str, str | None]]:
        """What an option may be short for: as getopt_long(3) has it, two names of one option do not contradict."""
        found = super()._get_option_tuples(option_string)
        return found[:1] if len({id(action) for action, *_ in found}) == 1 else found

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse has it, and where that fails, with options between the words of one argument."""
        try:
            found, left = self.parse_known_args(args, namespace)
            if left:
                self.error(f"unrecognized arguments: {' '.join(left)}")
        except UsageError:
            whole = any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions)
            if whole or "--" in args:  # argparse cannot tell then
                raise
            return self.parse_intermixed_args(args)
        return found

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        whole = action.nargs == argparse.REMAINDER  # the words of another command
        if action.option_strings and "--" in arg_strings and not whole:  # argparse would take the value away
            raise UsageError(f"{action.option_strings[-1]}: '--' is no value (see {self.prog} --help)")
        return super()._get_values(action, arg_strings)

    def long_options(self) -> dict[str, argparse.Action]:
        """The options by their long names, without the dashes."""
        words = self._option_string_actions
        return {word[2:]: action for word, action in words.items() if word.startswith("--")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; give its exit status: 0, 1 failure, 2 usage."""
    if arguments is None:
        gc.disable()  # until the command runs: there is no garbage among what is imported
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    called = os.path.basename(sys.argv[0])
    if arguments is None and called.startswith(("nbd", "mount.", "umount.")) and not called.startswith("nbdfs"):
        words = ["compat", called, *words]  # a symlink with the name of another program
    status = 1
    try:
        try:
            status = _dispatch(words)
        finally:
            logs.flush()
            sys.stdout.flush()
    except* UserError as group:
        for error in leaves(group):
            report(error)
            status = error.exit_status
    except* KeyboardInterrupt:
        status = 130
    except* _NobodyReadsError:
        status = 1
    except* OSError as group:
        known = {_known_trouble(error) for error in leaves(group)}
        if "" in known:
            raise
        for trouble in known:
            report(UserError(trouble))
        status = 1
    if arguments is None:
        sys.stderr.flush()
        os._exit(status)  # all is written: to take a process apart is a tenth of a short command's time
    return status


def _known_trouble(error: OSError) -> str:
    """What is wrong with how the process was started, if that is what failed, whatever the command was."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: let the command have more, for example by ulimit -n 1024"
    if error.errno == errno.ENOENT and not error.filename and not _has_folder():
        return "the working directory is gone: change to another one"
    return ""


def _has_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


class _NobodyReadsError(Exception):
    """The reader of standard output is gone, which needs no word."""


class _Output(io.FileIO):
    """Standard output: what it does not take is told in one line."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError as error:
            _say_no_more()
            raise _NobodyReadsError from error
        except OSError as error:
            _say_no_more()
            raise UserError(f"cannot write to standard output: {error.strerror}") from error


def _say_no_more() -> None:
    """Let what is still to be written, also at exit, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _open_standard_streams() -> None:
    """Have /dev/null where a standard stream was closed before us, so that nothing else we open gets its place.

    What was to be read or written there must fail, as O_PATH has it; only complaints may go nowhere.
    Names of files that are no UTF-8 go out as they came in, and what the locale has no letters for goes out escaped.
    """
    closed = sys.stdout is None
    for name, mode, flags in (("stdin", "r", os.O_PATH), ("stdout", "w", os.O_PATH), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, closefd=False))
    if closed or (sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper)):
        output = io.BufferedWriter(_Output(1, "w", closefd=False))
        codecs.register_error("nbdfs.output", _encoded)
        sys.stdout = io.TextIOWrapper(
            output, sys.stdout.encoding, "nbdfs.output", line_buffering=bool(sys.stdout.line_buffering)
        )


def _encoded(error: UnicodeError) -> tuple[bytes, int]:
    """What an encoding does not know, for codecs.register_error."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    handlers = ("surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace" for letter in letters)
    return b"".join(letter.encode("ascii", how) for letter, how in zip(letters, handlers, strict=True)), error.end


def _dispatch(words: list[str]) -> int:
    if words[:1] in (["-V"], ["--version"]):
        print(f"nbdfs {nbdfs.__version__}")
        return 0
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0].partition("=")[0] == "--config":  # before the command too, since it is about all of them
        words = _config_behind(words)
    name, *rest = words
    parser = parser_of(name)
    parsed = parser.parse_args(parser.prepare(rest))
    if parsed.config:
        from nbdfs.config.files import use_file

        use_file(parsed.config)
    logs.set_up(parsed.verbose)
    if not gc.isenabled():
        _loaded()
    return int(_load(name).run(parsed))


def _loaded() -> None:
    """What was put off until the command runs: garbage collection, and that Ctrl-C is an exception."""
    gc.freeze()
    gc.enable()
    if callable(signal.getsignal(signal.SIGINT)):  # it is not ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _config_behind(words: Sequence[str]) -> list[str]:
    """The words with the option --config, which comes first, behind the command."""
    option = [words[0]] if "=" in words[0] else list(words[:2])
    if len(words) <= len(option):
        raise UsageError("write nbdfs --config FILE COMMAND ...")
    return [words[len(option)], *option, *words[len(option) + 1 :]]


def parser_of(name: str) -> Parser:
    """The parser of a command.  Raises UsageError if there is none of that name."""
    if name not in COMMANDS:
        raise UsageError(f"there is no command '{name}'{nearest(name, COMMANDS)}")
    module = _load(name)
    parser = Parser(prog=f"nbdfs {name}", description=module.__doc__)
    module.add_arguments(parser)
    parser.add_argument("--config", metavar="FILE", help="take stacks and mounts from this file alone")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more; -vv also shows tracebacks")
    return parser


def _load(name: str) -> ModuleType:
    return importlib.import_module(f"nbdfs.cli.{name}")


def _help() -> str:
    lines = [f"  {name:10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: nbdfs COMMAND ...", "", nbdfs.__doc__ or "", "", *lines, "", "nbdfs COMMAND --help tells more."]
    )


def report(error: UserError) -> None:
    """Say what is wrong, and with -vv where that was found."""
    print("nbdfs:", printable(str(error), keep="\n"), file=sys.stderr)
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)


if __name__ == "__main__":
    sys.exit(main())
