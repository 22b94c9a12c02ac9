"""Arguments, exit statuses, and the one line on stderr."""

from __future__ import annotations

import errno
import runpy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pushd import __version__, cli
from pushd.config.schema import AuthConfig, Config
from pushd.errors import ConfigError, StartError, StoreError, StoreUnavailable
from pushd.model import Membership, User
from pushd.signals import Signals
from pushd.user_ids import INTEGERS, UserIds

SECRET = "s3cret-" + "x" * 40


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in cli.os.environ if name.startswith("PUSHD_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call main; its exit status, stdout and stderr."""

    def do(*argv: str) -> tuple[int, str, str]:
        try:
            status: Any = cli.main(argv)
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return do


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Callable[..., Any]], None]:
    """Put a function in the place of one that the command line calls."""

    def put(name: str, function: str, body: Callable[..., Any]) -> None:
        module = ModuleType(name)
        setattr(module, function, body)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        monkeypatch.setattr(__import__(parent, fromlist=["_"]), child, module, raising=False)

    return put


Call = Callable[..., tuple[int, str, str]]
Part = Callable[[str, str, Callable[..., Any]], None]


def raising(error: BaseException) -> Callable[..., None]:
    def body(*_args: object, **_kwargs: object) -> None:
        raise error

    return body


def assert_one_line(err: str) -> None:
    assert err.startswith("pushd: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"pushd {__version__}\n", "")


def test_help_shows_names_that_work_in_a_shell(call: Call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    assert "usage: pushd-server" in out
    assert "python -m pushd" in out


def test_check(call: Call, tmp_path: Path) -> None:
    assert call("--check") == (0, "ok\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_check_reads_the_file(call: Call, tmp_path: Path, mark: str) -> None:
    (tmp_path / "p.toml").write_text(mark + "[server]\nport = 1\n", encoding="utf-8")
    assert call("--config", "p.toml", "--check") == (0, "ok\n", "")


def test_print_config(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.toml").write_text("[server]\nport = 1\ndrain_s = 2\n")
    monkeypatch.setenv("PUSHD_SERVER_PORT", "9")
    monkeypatch.setenv("PUSHD_AUTH_JWT_SECRET", SECRET)
    status, out, err = call("--config", "p.toml", "--print-config")
    assert (status, err) == (0, "")
    assert "port = 9\n" in out
    assert "drain_s = 2\n" in out
    assert 'jwt_secret = "***"\n' in out
    assert SECRET not in out


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--chek"], "unrecognized arguments: --chek"),
        (["--che"], "unrecognized arguments"),
        (["--config"], "expected one argument"),
        (["serve"], "invalid choice"),
        (["--check", "--print-config"], "not allowed with"),
        (["--check", "token", "--user", "7"], "do not go with token"),
        (["token"], "required: --user"),
        (["token", "--user", "x"], 'found "x", expected a whole number from 1 to'),
        (["token", "--user", "0"], 'found "0"'),
        (["token", "--user", "7", "--ttl", "0"], "argument --ttl"),
        (["token", "--user", "7", "--role", "9999999999"], "argument --role"),
        (["token", "--user", "7", "--ttl", "9" * 5000], "argument --ttl"),
        (["import-users"], "required: FILE"),
        (["import-groups"], "required: FILE"),
        (["import-users", "users.txt"], "users.txt: cannot be read: No such file"),
    ],
)
def test_wrong_usage(call: Call, argv: list[str], hint: str) -> None:
    status, out, err = call(*argv)
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert hint in err


def test_an_unreadable_configuration(call: Call, tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"a = '\xff'")
    expected = {
        "nope.toml": "nope.toml: cannot be read: No such file or directory",
        str(tmp_path): f"{tmp_path}: cannot be read: Is a directory",
        "a\0b": "cannot be read: embedded null byte",
        "binary.toml": "binary.toml: found a byte that is not UTF-8 at offset 5",
    }
    for path, hint in expected.items():
        status, _, err = call("--config", path, "--check")
        assert status == 2
        assert_one_line(err)
        assert hint in err


def test_a_wrong_configuration(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.toml").write_text("[server]\nprot = 1\n")
    status, _, err = call("--config", "p.toml")
    assert (status, err) == (2, "pushd: p.toml: server.prot: unknown key, did you mean server.port?\n")
    monkeypatch.setenv("PUSHD_SERVER_HOST", "0.0.0.0")
    status, _, err = call()
    assert status == 2
    assert err.startswith("pushd: environment variable PUSHD_SERVER_HOST: server.host: found")


class TestRun:
    def test_gets_the_configuration_and_a_way_to_reread_it(self, call: Call, part: Part, tmp_path: Path) -> None:
        file = tmp_path / "p.toml"
        file.write_text("[server]\nport = 1\n")
        seen: list[Config] = []

        def run(config: Config, reload: Callable[[], Config], _signals: Signals) -> None:
            seen.append(config)
            file.write_text("[server]\nport = 2\n")
            seen.append(reload())
            file.write_text("[server]\nport = x\n")
            with pytest.raises(ConfigError, match=r"p\.toml: not valid TOML"):
                reload()

        part("pushd.daemon", "run", run)
        assert call("--config", str(file)) == (0, "", "")
        assert [config.server.port for config in seen] == [1, 2]

    @pytest.mark.parametrize(
        ("error", "status", "text"),
        [
            (StartError("127.0.0.1:8801 is taken"), 1, "127.0.0.1:8801 is taken"),
            (ConfigError("k.pem: not a key"), 2, "k.pem: not a key"),
            (StoreUnavailable("sqlite", "disk full"), 1, "sqlite: disk full"),
            (KeyboardInterrupt(), 1, "interrupted"),
            (RuntimeError("two\nlines"), 1, "internal error: RuntimeError: two lines"),
            (MemoryError(), 1, "internal error: MemoryError:"),
        ],
    )
    def test_failures_are_one_line(self, call: Call, part: Part, error: BaseException, status: int, text: str) -> None:
        part("pushd.daemon", "run", raising(error))
        assert call() == (status, "", f"pushd: {text}\n")

    def test_a_traceback_is_for_debugging(self, call: Call, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PUSHD_LOG_LEVEL", "debug")
        part("pushd.daemon", "run", raising(RuntimeError("boom")))
        status, _, err = call()
        assert status == 1
        assert err.startswith("Traceback")
        assert err.endswith("\npushd: internal error: RuntimeError: boom\n")
        part("pushd.daemon", "run", raising(StartError("port taken")))
        assert call() == (1, "", "pushd: port taken\n")


class TestToken:
    def test_is_printed(self, call: Call, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
        def issue(auth: AuthConfig, *, user_id: int, role: int, ttl_s: int) -> str:
            return f"{auth.jwt_secret} {user_id} {role} {ttl_s}"

        part("pushd.auth.authenticator", "issue_token", issue)
        monkeypatch.setenv("PUSHD_AUTH_JWT_SECRET", SECRET)
        assert call("token", "--user", "7", "--role", "1", "--ttl", "60") == (0, f"{SECRET} 7 1 60\n", "")
        assert call("token", "--user", "7") == (0, f"{SECRET} 7 0 3600\n", "")

    @pytest.mark.parametrize("argv", [["--config", "p.toml", "token"], ["token", "--config", "p.toml"]])
    def test_takes_the_configuration_in_either_place(
        self, call: Call, part: Part, tmp_path: Path, argv: list[str]
    ) -> None:
        (tmp_path / "p.toml").write_text("[auth]\njwt_issuer = 'me'\n")
        part("pushd.auth.authenticator", "issue_token", lambda auth, **_: auth.jwt_issuer)
        assert call(*argv, "--user", "7") == (0, "me\n", "")

    def test_needs_a_secret(self, call: Call, part: Part) -> None:
        part("pushd.auth.authenticator", "issue_token", raising(ConfigError("auth.jwt_secret: found none")))
        assert call("token", "--user", "7") == (2, "", "pushd: auth.jwt_secret: found none\n")


class TestImportUsers:
    @pytest.fixture
    def imported(self, part: Part) -> list[tuple[str, list[User]]]:
        calls: list[tuple[str, list[User]]] = []

        def import_users(data_dir: str, users: list[User], ids: UserIds) -> int:
            assert ids is INTEGERS
            calls.append((data_dir, users))
            return len(users)

        part("pushd.stores.sqlite", "import_users", import_users)
        return calls

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("u.csv", "\ufeffid,username,user_type\n7,张三,1\n"),
            ("u.json", '[{"id": 7, "username": "张三", "user_type": 1}]'),
        ],
    )
    def test_fills_the_directory(
        self, call: Call, imported: list[tuple[str, list[User]]], tmp_path: Path, name: str, text: str
    ) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / "p.toml").write_text("[server]\ndata_dir = 'd'\n")
        status, out, err = call("import-users", "--config", "p.toml", name)
        assert (status, out, err) == (0, "1 users imported or updated\n", "")
        assert imported == [("d", [User(user_id=7, username="张三", role=1)])]

    def test_a_bad_row_imports_nothing(
        self, call: Call, imported: list[tuple[str, list[User]]], tmp_path: Path
    ) -> None:
        (tmp_path / "u.csv").write_text("id,username,user_type\n7,a,1\n8,b,x\n")
        status, _, err = call("import-users", "u.csv")
        assert (status, imported) == (2, [])
        assert err.startswith('pushd: u.csv: line 3: user_type: found "x", expected a whole number')

    def test_a_store_that_refuses(self, call: Call, part: Part, tmp_path: Path) -> None:
        (tmp_path / "u.csv").write_text("id,username,user_type\n")
        part("pushd.stores.sqlite", "import_users", raising(StoreError("sqlite", "locked")))
        assert call("import-users", "u.csv") == (1, "", "pushd: sqlite: locked\n")


class TestImportGroups:
    @pytest.fixture
    def imported(self, part: Part) -> list[tuple[str, list[Membership], str]]:
        calls: list[tuple[str, list[Membership], str]] = []

        def import_groups(
            data_dir: str, memberships: Iterable[Membership], *, source: str, ids: UserIds
        ) -> tuple[int, int]:
            assert ids is INTEGERS
            given = list(memberships)
            calls.append((data_dir, given, source))
            return 1, len(given)

        part("pushd.stores.sqlite", "import_groups", import_groups)
        return calls

    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_fills_the_directory(
        self, call: Call, imported: list[tuple[str, list[Membership], str]], tmp_path: Path, mark: str
    ) -> None:
        (tmp_path / "g.csv").write_text(f"{mark}group,user_id,title\n销售,7,销售部\n销售,8,\n", encoding="utf-8")
        (tmp_path / "p.toml").write_text("[server]\ndata_dir = 'd'\n")
        assert call("import-groups", "--config", "p.toml", "g.csv") == (0, "1 groups replaced, with 2 members\n", "")
        assert imported == [("d", [Membership(2, "销售", 7, "销售部"), Membership(3, "销售", 8, "")], "g.csv")]

    @pytest.mark.usefixtures("imported")
    def test_what_cannot_be_read(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "bytes.csv").write_bytes(b"group,user_id\na,1\nb\xff,2\n")
        (tmp_path / "bad.csv").write_text("group,user_id\na,1\na,x\n")
        for name, words in (
            ("none.csv", "none.csv: cannot be read: No such file or directory\n"),
            (".", ".: cannot be read: Is a directory\n"),
            ("bytes.csv", "bytes.csv: line 3: found a byte that is not UTF-8, expected a text\n"),
            ("bad.csv", 'bad.csv: line 3: user_id: found "x", expected a whole number from 1 to '),
        ):
            status, out, err = call("import-groups", name)
            assert (status, out) == (2, "")
            assert err.startswith(f"pushd: {words}")


def test_a_reader_that_goes_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:

        class Gone:
            def write(self, _text: str) -> int:
                raise BrokenPipeError

            def fileno(self) -> int:
                return out.fileno()

        monkeypatch.setattr(sys, "stdout", Gone())
        assert cli.main(["--print-config"]) == 0


@pytest.mark.parametrize("argv", [["--print-config"], ["--help"], ["--version"], ["--check"]])
def test_an_output_that_cannot_be_written_is_one_line(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "out").open("w") as out:

        class Full:
            def write(self, _text: str) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            def fileno(self) -> int:
                return out.fileno()

        monkeypatch.setattr(sys, "stdout", Full())
        assert cli.main(argv) == 1
    assert capsys.readouterr().err == "pushd: stdout cannot be written: No space left on device\n"


def test_module_is_the_same_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pushd", "--check"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("pushd", run_name="__main__")
    assert (stop.value.code, capsys.readouterr().out) == (0, "ok\n")


# ---- what is set aside


def test_nothing_is_set_aside(call: Call) -> None:
    assert call("set-aside", "list") == (0, "nothing is set aside\n", "")
    assert call("set-aside", "list", "--json") == (0, "[]\n", "")
    assert call("set-aside", "retry", "--all") == (0, "0 to be tried again\n", "")
    assert call("set-aside", "drop", "--all") == (0, "0 dropped\n", "")
    status, out, err = call("set-aside", "drop", "3", "2")
    assert (status, out, err) == (1, "", "pushd: not set aside: 2, 3; nothing was done\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("set-aside",),
        ("set-aside", "mend"),
        ("set-aside", "retry"),
        ("set-aside", "drop"),
        ("set-aside", "drop", "1", "--all"),
        ("set-aside", "retry", "0"),
        ("set-aside", "retry", "x"),
        ("set-aside", "list", "1"),
        ("set-aside", "list", "--config", "missing.toml"),
        ("--check", "set-aside", "list"),
    ],
)
def test_wrong_usage_of_what_is_set_aside(call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
