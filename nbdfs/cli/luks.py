"""Look at LUKS headers, make volumes and change their passphrases.

SPEC is the encrypted device itself; `offset,offset=1M::DISK` names a part of a disk.  To read or mount the decrypted
content use the layer: luks,passphrase=+FILE::SPEC.  A passphrase is +FILE (taken whole, with a newline at its end if
there is one), - (asked for) or -FD.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from nbdfs.errors import UsageError, UserError, reason
from nbdfs.plans import plan
from nbdfs.secret import Secret
from nbdfs.source import Source
from nbdfs.stack import open_stack
from nbdfs.units import parse_duration, parse_size

if TYPE_CHECKING:
    from nbdfs.backends.luks.derivation import Effort
    from nbdfs.backends.luks.device import Found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = _action(actions, "info", "show a header, without secrets")
    info.add_argument("--json", action="store_true", help="in JSON")
    make = _action(actions, "format", "make a new volume: what the device holds is lost")
    _passphrase(make, "--passphrase", "what shall open it")
    _format_arguments(make)
    add = _action(actions, "add-key", "let one more passphrase open it")
    change = _action(actions, "change-key", "put another passphrase in the place of one")
    remove = _action(actions, "remove-key", "take a passphrase away")
    for parser_ in (add, change, remove):
        _passphrase(parser_, "--passphrase", "one that opens it now")
        _limit_arguments(parser_)
    for parser_ in (add, change):
        _passphrase(parser_, "--new-passphrase", "the new one")
        _effort_arguments(parser_)
    add.add_argument("--keyslot", type=int, metavar="N", help="the slot for it (default: the first free one)")
    remove.add_argument("--keyslot", type=int, metavar="N", help="the slot to remove (default: the one it opens)")
    remove.add_argument("--force", action="store_true", help="remove the last one too: the data is then lost")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help, description=help)
    parser.add_argument("spec", metavar="SPEC", help="the encrypted device")
    parser.add_argument("--detached", action="store_true", help="SPEC holds only the header, the data is elsewhere")
    return parser


def _passphrase(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    parser.add_argument(name, type=Secret, default=Secret("-"), metavar="SECRET", help=f"{help} (default: ask)")


def _format_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--type", choices=("luks1", "luks2"), default="luks2", help="(default %(default)s)")
    add("--cipher", default="aes-xts-plain64", help="(default %(default)s)")
    add("--key-size", type=int, default=512, metavar="BITS", help="of both halves with XTS (default %(default)s)")
    add("--sector-size", type=parse_size, default=512, metavar="SIZE", help="512 to 4096 (default %(default)s)")
    add("--label", default="", help="a name for it (LUKS2)")
    add("--uuid", default="", help="(default: a random one)")
    add("--force", action="store_true", help="overwrite what is there")
    _effort_arguments(parser)


def _effort_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--hash", default="sha256", metavar="NAME", help="(default %(default)s)")
    add("--pbkdf", choices=("pbkdf2", "argon2i", "argon2id"), help="(default: argon2id, with LUKS1 pbkdf2)")
    add("--iter-time", type=parse_duration, default=2.0, metavar="SECONDS", help="for one try (default 2)")
    add("--pbkdf-memory", type=parse_size, default=1 << 30, metavar="SIZE", help="the most for argon2 (default 1G)")
    add("--pbkdf-force-iterations", type=int, metavar="N", help="instead of measuring")


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pbkdf-memory-limit", type=parse_size, default=1 << 30, metavar="SIZE",
        help="the most memory that the header may ask for (default 1G)")  # fmt: skip
    add("--pbkdf-cost-limit", type=int, default=50_000_000, metavar="N",
        help="the most iterations, or KiB filled by argon2, for all tries (default %(default)s)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    planned = plan(arguments.spec)
    readonly = arguments.action == "info"
    action: Callable[[Source, argparse.Namespace], Awaitable[None]] = _ACTIONS[arguments.action]

    async def work() -> None:
        async with open_stack(planned, readonly=readonly) as device:
            try:
                await action(device, arguments)
            except OSError as error:
                raise UserError(f"{planned}: {reason(error)}") from error

    trio.run(work)
    return 0


async def _info(device: Source, arguments: argparse.Namespace) -> None:
    from nbdfs.backends.luks.device import load_header
    from nbdfs.backends.luks.report import facts, lines

    value = facts((await load_header(device, detached=arguments.detached)).header)
    print(json.dumps(value, indent=2) if arguments.json else "\n".join(lines(value)))


async def _format(device: Source, arguments: argparse.Namespace) -> None:
    from nbdfs.backends.luks.format import Volume, format_device

    if arguments.key_size % 8:
        raise UsageError("--key-size is in bits: a multiple of 8")
    version = int(arguments.type[-1])
    identity = {"uuid": arguments.uuid} if arguments.uuid else {}
    volume = Volume(
        version, arguments.cipher, arguments.key_size // 8, arguments.sector_size, arguments.label,
        detached=arguments.detached, **identity,
    )  # fmt: skip
    passphrase = await _read_new(arguments.passphrase)
    await format_device(device, volume, passphrase, _effort(arguments, version), force=arguments.force)


async def _add_key(device: Source, arguments: argparse.Namespace) -> None:
    from nbdfs.backends.luks.keys import add_key

    found, _, key = await _unlock(device, arguments)
    passphrase = await _read_new(arguments.new_passphrase)
    effort = _effort(arguments, found.header.version)
    number = await add_key(device, found, key, passphrase, effort, arguments.keyslot)
    print(f"key slot {number} added")


async def _change_key(device: Source, arguments: argparse.Namespace) -> None:
    from nbdfs.backends.luks.device import load_header
    from nbdfs.backends.luks.keys import add_key, remove_key

    found, old, key = await _unlock(device, arguments)
    passphrase = await _read_new(arguments.new_passphrase)
    new = await add_key(device, found, key, passphrase, _effort(arguments, found.header.version), None)
    await remove_key(device, await load_header(device, detached=arguments.detached), old)
    print(f"key slot {new} added, key slot {old} removed")


async def _remove_key(device: Source, arguments: argparse.Namespace) -> None:
    from nbdfs.backends.luks.keys import remove_key

    found, opened, _ = await _unlock(device, arguments)
    number = opened if arguments.keyslot is None else arguments.keyslot
    useful = found.header.digest_of(found.header.data_segment()).keyslots  # unbound ones open no data
    if set(useful) == {number} and not arguments.force:
        raise UserError("this is the last key slot: without it the data is lost; --force removes it")
    await remove_key(device, found, number)
    print(f"key slot {number} removed")


_ACTIONS = {
    "info": _info,
    "format": _format,
    "add-key": _add_key,
    "change-key": _change_key,
    "remove-key": _remove_key,
}


async def _unlock(device: Source, arguments: argparse.Namespace) -> tuple[Found, int, bytes]:
    """The header, the slot that the passphrase opens, and the volume key."""
    from nbdfs.backends.luks.device import load_header
    from nbdfs.backends.luks.kdf import Budget
    from nbdfs.backends.luks.keyslot import unlock

    found = await load_header(device, detached=arguments.detached)
    segment = found.header.data_segment()
    passphrase = await _read(arguments.passphrase, "Passphrase")
    budget = Budget(arguments.pbkdf_memory_limit, arguments.pbkdf_cost_limit)
    number, key = await unlock(device, found.header, found.header.digest_of(segment), passphrase, None, budget)
    return found, number, key


async def _read(secret: Secret, prompt: str) -> bytes:
    return await trio.to_thread.run_sync(secret.read, prompt)


async def _read_new(secret: Secret) -> bytes:
    """A passphrase to be set: what nobody sees being typed is typed twice."""
    passphrase = await _read(secret, "New passphrase")
    if secret.is_typed and await _read(secret, "New passphrase once more") != passphrase:
        raise UserError("the two new passphrases differ: nothing was changed")
    return passphrase


def _effort(arguments: argparse.Namespace, version: int) -> Effort:
    from nbdfs.backends.luks.derivation import Effort, header_hash

    kind = arguments.pbkdf or ("pbkdf2" if version == 1 else "argon2id")
    return Effort(
        kind, header_hash(arguments.hash), arguments.iter_time, arguments.pbkdf_memory,
        arguments.pbkdf_force_iterations,
    )  # fmt: skip
