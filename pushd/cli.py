"""Arguments in, exit status out: 0 is a normal stop, 2 wrong usage or configuration, 1 a failure at run time.

What went wrong is one line on stderr. A traceback appears only for an internal error, and only when
`log.level` is "debug".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pushd import __version__
from pushd.config import toml
from pushd.config.schema import Config
from pushd.errors import ConfigError, PushdError
from pushd.signals import Signals
from pushd.user_ids import shown
from pushd.users.group_file import parse_groups
from pushd.users.import_file import parse_users
from pushd.values import MAX_INT64, MAX_ROLE, MIN_ROLE

if TYPE_CHECKING:
    from pushd.stores.sqlite import set_aside

_DESCRIPTION = "A notification daemon: durable notices over WebSocket. Without a command it runs until SIGTERM."
_EPILOG = """\
Every configuration key can be overridden by the environment, as PUSHD_<SECTION>_<KEY>; all of them are
in configs/reference.toml. `pushd-server` and `python -m pushd` are the same program as `pushd`, which in
bash and zsh is a builtin of that name.
"""


class _Parser(argparse.ArgumentParser):
    """Refuses with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pushd: {_one_line(message)} (try {self.prog} --help)\n")

    def _print_message(self, message: str, file: object = None) -> None:
        (_print if file is sys.stdout else _tell)(message)


def main(argv: Sequence[str] | None = None, signals: Signals | None = None) -> int:
    """Do what the arguments say; the exit status. Raises SystemExit for --help, --version and wrong usage.

    `signals`: those that are held since the start of the process; only the daemon obeys them.
    """
    try:
        _command(_parser().parse_args(argv), signals)
    except ConfigError as error:
        return _failed(2, str(error))
    except PushdError as error:
        return _failed(1, str(error))
    except KeyboardInterrupt:
        return _failed(1, "interrupted")
    except Exception as error:
        return _failed(1, f"internal error: {type(error).__name__}: {error}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pushd-server",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_config(parser, None)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help='validate the configuration, print "ok", open nothing')
    mode.add_argument("--print-config", action="store_true", help="print the effective configuration, secrets masked")
    mode.add_argument("--version", action="version", version=f"pushd {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _add_token(commands.add_parser("token", help="print a signed token, for trying things out", allow_abbrev=False))
    _add_import(commands.add_parser("import-users", help="fill the embedded directory", allow_abbrev=False))
    _add_import_groups(commands.add_parser("import-groups", help="say who is in which group", allow_abbrev=False))
    _add_set_aside(
        commands.add_parser("set-aside", help="see, retry or drop what could not be used", allow_abbrev=False)
    )
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--config", metavar="FILE", default=default, help="TOML file; without it, the defaults")


def _add_token(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, argparse.SUPPRESS)
    role = partial(_whole, MIN_ROLE, MAX_ROLE)
    ttl = partial(_whole, 1, 10 * 365 * 86_400)
    parser.add_argument("--user", required=True, metavar="ID", help="the user's id")
    parser.add_argument("--role", type=role, default=0, metavar="N", help="the user's role (default 0)")
    parser.add_argument("--ttl", type=ttl, default=3600, metavar="SECONDS", help="validity, in seconds (default 3600)")


def _add_import(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, argparse.SUPPRESS)
    parser.add_argument(
        "file",
        metavar="FILE",
        help="FILE.csv with the header id,username,user_type, or FILE.json with a list of objects of these keys",
    )


def _add_import_groups(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, argparse.SUPPRESS)
    parser.add_argument(
        "file",
        metavar="FILE",
        help="CSV with the header group,user_id[,title]; the groups that it names have whom it names from then on",
    )


def _add_set_aside(parser: argparse.ArgumentParser) -> None:
    _add_config(parser, argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    listing = actions.add_parser("list", help="what there is, the oldest first", allow_abbrev=False)
    _add_config(listing, argparse.SUPPRESS)
    listing.add_argument("--json", action="store_true", help="for programs")
    for action, about in (("retry", "have the daemon try entries again"), ("drop", "forget entries")):
        changing = actions.add_parser(action, help=about, allow_abbrev=False)
        _add_config(changing, argparse.SUPPRESS)
        entry = partial(_whole, 1, MAX_INT64)
        changing.add_argument("ids", type=entry, nargs="*", metavar="ID", help="as list shows it")
        changing.add_argument("--all", action="store_true", help="all there are at this moment")


def _whole(least: int, most: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from {least} to {most}")
    return number


def _command(args: argparse.Namespace, signals: Signals | None) -> None:
    if signals is not None and (args.command or args.check or args.print_config):
        signals.release()
    load = partial(_load, args.config)
    config = load()
    if args.command and (args.check or args.print_config):
        raise ConfigError(f"--check and --print-config do not go with {args.command}")
    if args.print_config:
        _print(toml.dump(config))
    elif args.check:
        _print("ok\n")
    else:
        _act(args, config, load, signals)


def _act(args: argparse.Namespace, config: Config, load: Callable[[], Config], signals: Signals | None) -> None:
    try:
        match args.command:
            case "token":
                _token(config, args)
            case "import-users":
                _import_users(config, args.file)
            case "import-groups":
                _import_groups(config, args.file)
            case "set-aside":
                _set_aside(config, args)
            case _:
                _run(config, load, signals)
    except Exception as error:
        if config.log.level == "debug" and not isinstance(error, PushdError):
            traceback.print_exc()
        raise


def _load(path: str | None) -> Config:
    """The effective configuration: the file's if there is one, and the environment's. Raises ConfigError."""
    text = "" if path is None else _read(path)
    return toml.parse(text, source=path or "built-in defaults", environ=os.environ)


def _read(path: str) -> str:
    """A text file, with or without a byte order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: found a byte that is not UTF-8 at offset {error.start}, expected a text") from None
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {text}") from None


def _run(config: Config, load: Callable[[], Config], signals: Signals | None) -> None:
    if signals is not None:
        signals.listen()  # what is imported now takes its time
    from pushd import daemon  # here, so that the other commands need neither the event loop nor the extension

    daemon.run(config, load, signals or Signals())


def _token(config: Config, args: argparse.Namespace) -> None:
    from pushd.auth.authenticator import issue_token

    ids = config.directory.ids
    user_id = ids.accepted(args.user)
    if user_id is None:
        raise ConfigError(f"token: argument --user: found {shown(args.user)}, expected {ids.expected}")
    _print(issue_token(config.auth, user_id=user_id, role=args.role, ttl_s=args.ttl) + "\n")


def _import_users(config: Config, path: str) -> None:
    from pushd.stores.sqlite import import_users

    ids = config.directory.ids
    users = parse_users(_read(path), source=path, ids=ids)
    count = import_users(config.server.data_dir, users, ids)
    _print(f"{count} users imported or updated\n")


def _import_groups(config: Config, path: str) -> None:
    from pushd.stores.sqlite import import_groups

    ids = config.directory.ids
    memberships = parse_groups(_lines(path), source=path, ids=ids)
    groups, members = import_groups(config.server.data_dir, memberships, source=path, ids=ids)
    _print(f"{groups} groups replaced, with {members} members\n")


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file, with or without a byte order mark, as they are asked for."""
    number = 0
    try:
        with Path(path).open("rb") as file:
            for line in file:
                number += 1
                yield line.decode("utf-8" if number > 1 else "utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: line {number}: found a byte that is not UTF-8, expected a text") from None
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {text}") from None


def _set_aside(config: Config, args: argparse.Namespace) -> None:
    from pushd.stores.sqlite import set_aside

    data_dir, ids = config.server.data_dir, config.directory.ids
    if args.action == "list":
        _list_set_aside(set_aside.entries(data_dir, ids), as_json=args.json)
        return
    if bool(args.ids) is args.all:
        raise ConfigError(f"set-aside {args.action}: expected either ids or --all")
    entry_ids = None if args.all else args.ids
    if args.action == "retry":
        _print(f"{set_aside.want(data_dir, entry_ids, ids)} to be tried again\n")
    else:
        _print(f"{set_aside.drop(data_dir, entry_ids, ids)} dropped\n")


def _list_set_aside(entries: Iterable[set_aside.Entry], *, as_json: bool) -> None:
    rows = [
        {
            "id": entry.entry_id,
            "kind": entry.kind,
            "at": _moment(entry.at_ms),
            "bytes": entry.size,
            "state": "retry" if entry.is_wanted else "aside",
            "cause": entry.cause,
        }
        for entry in entries
    ]
    if as_json:
        _print(json.dumps(rows) + "\n")
    elif not rows:
        _print("nothing is set aside\n")
    else:
        _print(_table([[*rows[0]], *([str(value) for value in row.values()] for row in rows)]))


def _moment(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):  # of a row that somebody has written to
        return "?"


def _table(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, the last one as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _print(text: str) -> None:
    """To stdout, whose reader may have gone: `... --print-config | head -1` is no failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is not tried again at the exit
        if not isinstance(error, BrokenPipeError):
            raise PushdError(f"stdout cannot be written: {error.strerror}") from error


def _failed(status: int, text: str) -> int:
    _tell(f"pushd: {_one_line(text)}\n")
    return status


def _tell(text: str) -> None:
    """To stderr; the exit status says as much where that cannot be written."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _one_line(text: str) -> str:
    return " ".join(text.split())
