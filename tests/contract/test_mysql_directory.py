"""What holds only for a directory in MySQL or MariaDB: others' tables, others' servers."""

from __future__ import annotations

import asyncio
import datetime
import gc
import ipaddress
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pushd.config.schema import Config, DirectoryConfig
from pushd.errors import StartError, StoreLost, StoreUnavailable
from pushd.model import User
from pushd.stores.mysql import MysqlDirectory, open_directory, pool
from pushd.stores.mysql.address import parse_url
from pushd.stores.mysql.directory import ROWS_AT_ONCE
from tests import mariadb
from tests.daemon import until
from tests.mariadb import MariadbServer

server = mariadb.mariadb_server  # the fixture
Open = Callable[..., Any]
TABLE = "CREATE TABLE user (id BIGINT PRIMARY KEY, username VARCHAR(64), user_type INT)"
ANN, BEN = User(1, "ann", 1), User(2, "ben", 0)
PASSWORD = "p:a/s?s#w@o%rd'密"
ENCODED = "p%3Aa%2Fs%3Fs%23w%40o%25rd%27%E5%AF%86"


class Log(list[tuple[str, str, bool]]):
    """What was observed."""

    def __call__(self, store: str, operation: str, seconds: float, is_ok: bool) -> None:
        self.append((store, operation, is_ok))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def connect(server: MariadbServer, log: Log) -> AsyncIterator[Open]:
    """Opens a directory; keyword arguments are keys of the configuration."""
    async with AsyncExitStack() as stack:

        async def connect_one(*, rows_at_once: int = ROWS_AT_ONCE, **keys: Any) -> MysqlDirectory:
            config = Config(directory=DirectoryConfig(**({"url": server.url} | keys)))
            return await stack.enter_async_context(open_directory(config, log, rows_at_once=rows_at_once))

        yield connect_one


@pytest.fixture
async def directory(server: MariadbServer, connect: Open) -> MysqlDirectory:
    """Two users in the table that is the default."""
    server.execute(TABLE)
    server.execute("INSERT INTO user VALUES (1, 'ann', 1), (2, 'ben', 0)")
    opened: MysqlDirectory = await connect()
    return opened


async def everything(directory: MysqlDirectory, user_ids: Any = range(-3, 100)) -> tuple[Any, ...]:
    return (await directory.users(user_ids), await directory.all_ids(), await directory.ids_by_role([1]))


# ---- the address


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://u:secret@h", "names no database"),
        ("mysql://u:secret@h/", "names no database"),
        ("mysql://u:secret@h/a/b", "names no database"),
        ("mysql://:secret@h/db", "names no user"),
        ("mysql://h/db", "names no user"),
        ("mysql://u:secret@/db", "names no user or no host"),
        ("mysql://u:sec/ret@h/db", "cannot be read"),
        ("mysql://u:secret@h:port/db", "cannot be read"),
        ("mysql://u:secret@h:99999/db", "cannot be read"),
        ("mysql://u:secret@h/db?colour=red", "unknown option 'colour'; expected one of charset, ssl"),
        ("mysql://u:secret@h/db?charset=klingon", "charset=klingon"),
        ("mysql://u:secret@h/db?ssl=perhaps", "ssl=perhaps; expected true or false"),
        ("mysql://u:secret@h/db?ssl_ca=/nowhere.pem", "ssl_ca=/nowhere.pem cannot be used"),
        ("mysql://u:secret@h/db?ssl_cert=/nowhere.pem", "ssl_cert=/nowhere.pem cannot be used"),
    ],
)
def test_urls_that_cannot_be_used(url: str, complaint: str) -> None:
    with pytest.raises(StartError) as caught:
        parse_url(url)
    text = str(caught.value)
    assert complaint in text
    assert text.startswith("directory.url")
    assert "sec" not in text
    assert "\n" not in text


def test_a_url_taken_apart() -> None:
    address = parse_url(f"mysql://%C3%A4nn:{ENCODED}@[::1]:3307/my%20db?charset=latin1")
    assert (address.user, address.password, address.host, address.port) == ("änn", PASSWORD, "::1", 3307)
    assert (address.database, address.charset, address.tls) == ("my db", "latin1", None)
    address = parse_url("mysql://u@h/db")
    assert (address.password, address.port, address.charset) == ("", 3306, "utf8mb4")


def test_tls_checks_the_server_unless_told_otherwise() -> None:
    strict = parse_url("mysql://u@h/db?ssl=true").tls
    assert strict is not None
    assert strict.check_hostname
    lax = parse_url("mysql://u@h/db?ssl_verify=false").tls
    assert lax is not None
    assert not lax.check_hostname
    assert parse_url("mysql://u@h/db?ssl=false").tls is None


# ---- what the configuration says


async def test_names_and_columns_are_as_configured(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE TABLE `we``ird %s table` (`the id` INT PRIMARY KEY, `n{}ame` TEXT, `role%%` TINYINT)")
    server.execute("INSERT INTO `we``ird %s table` VALUES (7, 'greta', 1), (8, 'hugo', 2)")
    directory = await connect(table="we`ird %s table", id_column="the id", name_column="n{}ame", role_column="role%%")
    await directory.check()
    assert await everything(directory) == ({7: User(7, "greta", 1), 8: User(8, "hugo", 2)}, [7, 8], [7])


async def test_a_table_of_another_database(server: MariadbServer, connect: Open) -> None:
    server.execute(TABLE)
    server.execute("INSERT INTO user VALUES (1, 'ann', 1)")
    directory = await connect(url=server.url_for("root", database="mysql"), table=f"{server.database}.user")
    await directory.check()
    assert await directory.all_ids() == [1]


async def test_a_password_of_all_kinds_of_characters_and_no_right_but_to_read(
    server: MariadbServer, connect: Open, directory: MysqlDirectory
) -> None:
    server.execute("CREATE OR REPLACE USER reader@'%%' IDENTIFIED BY %s", PASSWORD)
    server.execute(f"GRANT SELECT (id, username, user_type) ON {server.database}.user TO reader@'%'")
    reading = await connect(url=server.url_for("reader", ENCODED))
    await reading.check()
    assert await everything(reading) == ({1: ANN, 2: BEN}, [1, 2], [1])
    await reading.learn([User(9, "new", 1)])
    assert server.execute("SELECT COUNT(*) FROM user") == [(2,)]


async def _complaint(directory: MysqlDirectory) -> str:
    with pytest.raises(StartError) as caught:
        await directory.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("directory")
async def test_what_people_must_change_is_named(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE OR REPLACE USER poor@'%' IDENTIFIED BY 'secret'")
    wrong = await _complaint(await connect(url=server.url_for("poor", "secres")))
    assert wrong.startswith("directory.url: Access denied for user 'poor'")
    assert "secre" not in wrong
    assert "expected a database" in await _complaint(await connect(url=server.url_for("poor", "secret")))
    assert "expected a database" in await _complaint(await connect(url=server.url_for("root", database="nowhere")))
    server.execute(f"GRANT SELECT (id, username) ON {server.database}.user TO poor@'%'")
    poor = server.url_for("poor", "secret")
    assert (await _complaint(await connect(url=poor))).startswith("directory.role_column: ")
    assert (await _complaint(await connect(url=poor, table="users"))).startswith("directory.table: ")
    assert (await _complaint(await connect(table="users"))).startswith("directory.table: ")
    for key in ("id_column", "name_column", "role_column"):
        text = await _complaint(await connect(**{key: "nope"}))
        assert text.startswith(f"directory.{key}: Unknown column 'nope'")
    assert "not of an integer type" in await _complaint(await connect(id_column="username"))
    assert "TLS" in await _complaint(await connect(url=server.url + "?ssl_verify=false"))


async def test_at_run_time_the_same_is_a_store_that_is_away(server: MariadbServer, directory: MysqlDirectory) -> None:
    assert await directory.users([1]) == {1: ANN}
    server.execute("RENAME TABLE user TO away")
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match="doesn't exist") as caught:
            await directory.users([1])
        assert not isinstance(caught.value, StoreLost)
    server.execute("RENAME TABLE away TO user")
    assert await directory.users([1]) == {1: ANN}


# ---- others' data


async def test_odd_values_are_nobody_s_problem(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE TABLE user (id BIGINT UNSIGNED, username VARCHAR(64), user_type VARCHAR(8))")
    server.insert(
        "INSERT INTO user VALUES (%s, %s, %s)",
        [
            (None, "nobody", "1"), (0, "zero", "1"), (1, None, None), (2, "", ""), (3, "bob", "boss"),
            (4, "\\'\";🎉", "1"), (5, "first", "1st"), (6, "minus", "-1"), (7, "padded", "01"),
            (7, "padded", "01"), (2**63, "high", "1"),
        ],
    )  # fmt: skip
    directory = await connect()
    await directory.check()
    roles = {1: 0, 2: 0, 3: 0, 4: 1, 5: 0, 6: -1, 7: 0}
    users = await directory.users([*range(-3, 100), 2**63, 2**70])
    assert {user.user_id: user.role for user in users.values()} == roles
    assert [users[number].username for number in (1, 2, 4)] == ["", "", "\\'\";🎉"]
    assert await directory.all_ids() == list(roles)
    for role in (-1, 0, 1, 2):
        assert await directory.ids_by_role([role]) == [number for number, is_role in roles.items() if is_role == role]


@pytest.mark.parametrize("kind", ["BIGINT", "BIGINT UNSIGNED", "DECIMAL(60)", "VARCHAR(80)", "DOUBLE"])
async def test_roles_that_no_token_can_name_are_none(server: MariadbServer, connect: Open, kind: str) -> None:
    """In the users and in the lists alike."""
    server.execute(f"CREATE TABLE user (id INT PRIMARY KEY, username TEXT, user_type {kind})")
    roles = {1: 2**31 - 1, 2: 2**31, 3: 2**62, 4: 0, 5: 5}
    roles |= {} if "UNSIGNED" in kind else {6: -(2**31), 7: -(2**31) - 1, 8: -(2**62)}
    roles |= {9: 10**50, 10: -(10**50)} if kind in ("DECIMAL(60)", "VARCHAR(80)", "DOUBLE") else {}
    server.insert("INSERT INTO user VALUES (%s, 'x', %s)", list(roles.items()))
    directory = await connect()
    expected = {number: role if -(2**31) <= role < 2**31 else 0 for number, role in roles.items()}
    assert {user.user_id: user.role for user in (await directory.users(roles)).values()} == expected
    for role in (0, 5, 2**31 - 1, -(2**31)):
        found = await directory.ids_by_role([role])
        assert found == [number for number, is_role in expected.items() if is_role == role]


async def test_names_that_cannot_be_carried(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE TABLE user (id INT PRIMARY KEY, username LONGBLOB, user_type INT)")
    server.insert(
        "INSERT INTO user VALUES (%s, %s, 0)", [(1, b"a\0\n\xff"), (2, b"x" * 100_000), (3, "é".encode() * 500)]
    )
    names = {user.user_id: user.username for user in (await (await connect()).users([1, 2, 3])).values()}
    assert names == {1: "a\ufffd\ufffd\ufffd", 2: "x" * 255, 3: "é" * 255}


@pytest.mark.parametrize(
    ("kind", "values"),
    [("ENUM('0', '1')", "01"), ("TINYINT UNSIGNED", "01"), ("BOOLEAN", "01"), ("CHAR(2)", "01"), ("DECIMAL(3)", "01")],
)
async def test_roles_of_all_types(server: MariadbServer, connect: Open, kind: str, values: str) -> None:
    server.execute(f"CREATE TABLE user (id SMALLINT PRIMARY KEY, username TEXT, user_type {kind})")
    server.insert("INSERT INTO user VALUES (%s, %s, %s)", [(1, "zero", values[0]), (2, "one", values[1])])
    directory = await connect()
    await directory.check()
    assert [user.role for user in (await directory.users([1, 2])).values()] == [0, 1]
    assert await directory.ids_by_role([1]) == [2]
    assert await directory.ids_by_role([0]) == [1]
    assert await directory.ids_by_role([0, 1, 300]) == [1, 2]


@pytest.mark.parametrize("charset", ["utf8mb4", "latin1"])
async def test_names_in_other_character_sets(server: MariadbServer, connect: Open, charset: str) -> None:
    server.execute("CREATE TABLE user (id INT PRIMARY KEY, username VARCHAR(9) CHARSET latin1, user_type INT)")
    server.execute("INSERT INTO user VALUES (1, 'Jürgen', 1), (2, CONCAT('a', _latin1 x'81'), 1)")
    directory = await connect(url=f"{server.url}?charset={charset}")
    users = await directory.users([1, 2])
    assert users[1].username == "Jürgen"
    assert users[2].username.startswith("a")


async def test_names_of_bytes_that_are_no_text(server: MariadbServer, connect: Open) -> None:
    server.execute("CREATE TABLE user (id INT PRIMARY KEY, username VARBINARY(9), user_type INT)")
    server.execute("INSERT INTO user VALUES (1, x'61ff', 1)")
    assert await (await connect()).users([1]) == {1: User(1, "a\ufffd", 1)}


@pytest.fixture
def odd_server(server: MariadbServer) -> Iterator[MariadbServer]:
    """What new connections find set would change answers: pages cut short, names padded, other quotes and encodings."""
    settings = {
        "sql_select_limit": "2",
        "sql_mode": "'ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT'",
        "autocommit": "0",
        "init_connect": "'SET NAMES latin1; SET sql_select_limit = 1'",
        "tx_isolation": "'SERIALIZABLE'",
        "group_concat_max_len": "4",
        "time_zone": "'+09:00'",
    }
    before = {name: server.execute(f"SELECT @@GLOBAL.{name}")[0][0] for name in settings}
    for name, value in settings.items():
        server.execute(f"SET GLOBAL {name} = {value}")
    yield server
    server.revive()
    for name, old in before.items():
        server.execute(f"SET GLOBAL {name} = %s", old)


async def test_what_the_server_sets_for_new_connections_changes_nothing(
    odd_server: MariadbServer, connect: Open
) -> None:
    server = odd_server
    server.execute("CREATE TABLE user (id INT PRIMARY KEY, username CHAR(9) CHARSET utf8mb4, user_type CHAR(3))")
    server.insert("INSERT INTO user VALUES (%s, %s, %s)", [(number, "ü", number % 2) for number in range(1, 13)])
    server.execute("CREATE USER odd IDENTIFIED BY 'x'")  # init_connect is not for root
    server.execute(f"GRANT SELECT ON {server.database}.user TO odd")
    try:
        directory = await connect(url=server.url_for("odd", "x"), rows_at_once=5)
        await directory.check()
        assert await directory.all_ids() == list(range(1, 13))
        assert await directory.ids_by_role([1]) == list(range(1, 13, 2))
        assert await directory.users(range(20)) == {number: User(number, "ü", number % 2) for number in range(1, 13)}
        server.execute("UPDATE user SET username = 'b' WHERE id = 1")
        assert (await directory.users([1]))[1].username == "b"  # and no snapshot is kept
    finally:
        server.execute("DROP USER odd")


async def test_pages_meet_without_gap(server: MariadbServer, connect: Open) -> None:
    server.execute(TABLE)
    directory = await connect(rows_at_once=3)
    ids: list[int] = []
    for number in range(1, 11):
        ids.append(number * 7)
        server.execute("INSERT INTO user VALUES (%s, '', %s)", number * 7, number % 2)
        assert await directory.all_ids() == ids
        assert await directory.ids_by_role([1]) == ids[::2]
        assert sorted(await directory.users(range(100))) == ids


# ---- others' servers


async def test_everything_is_counted(directory: MysqlDirectory, log: Log) -> None:
    await directory.check()
    await everything(directory)
    assert directory.store == "directory"
    assert log == [("directory", name, True) for name in ("check", "users", "all_ids", "ids_by_role")]


async def test_a_restarted_server_is_used_again_at_once(server: MariadbServer, directory: MysqlDirectory) -> None:
    await asyncio.gather(*(directory.users([1]) for _ in range(4)))
    server.restart()
    assert await asyncio.gather(*(directory.users([1]) for _ in range(8))) == [{1: ANN}] * 8


async def test_a_server_that_is_away_and_comes_back(server: MariadbServer, directory: MysqlDirectory) -> None:
    assert await directory.users([1]) == {1: ANN}
    server.stop()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreLost):
            await directory.users([1])
    with pytest.raises(StoreLost):
        await directory.check()
    assert time.monotonic() - began < 1
    server.start()
    await directory.check()
    assert await directory.users([1]) == {1: ANN}


async def test_a_frozen_server_is_given_up_in_time(server: MariadbServer, directory: MysqlDirectory) -> None:
    assert await directory.users([1]) == {1: ANN}
    server.freeze()
    for ask in (lambda: directory.users([1]), directory.all_ids, directory.check):
        began = time.monotonic()
        with pytest.raises(StoreLost):
            await ask()
        assert 0.9 < time.monotonic() - began < 1.5
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreLost):
            await directory.all_ids()
    assert time.monotonic() - began < 0.5
    server.thaw()
    await directory.check()
    assert await everything(directory) == ({1: ANN, 2: BEN}, [1, 2], [1])


async def test_connections_that_the_server_closed_are_no_failure(
    server: MariadbServer, directory: MysqlDirectory
) -> None:
    await asyncio.gather(*(directory.users([1]) for _ in range(4)))
    for (number,) in server.execute(
        "SELECT id FROM information_schema.processlist WHERE info IS NULL AND db = DATABASE()"
    ):
        server.execute(f"KILL {number}")
    assert await directory.users([1]) == {1: ANN}


async def test_too_many_connections_are_a_matter_of_waiting(server: MariadbServer, connect: Open) -> None:
    server.execute(TABLE)
    server.execute("CREATE OR REPLACE USER few@'%' WITH MAX_USER_CONNECTIONS 1")
    server.execute(f"GRANT SELECT ON {server.database}.* TO few@'%'")
    first, second = await connect(url=server.url_for("few")), await connect(url=server.url_for("few"))
    await first.check()
    with pytest.raises(StoreUnavailable) as caught:
        await second.check()
    assert not isinstance(caught.value, StoreLost)


def _connections(server: MariadbServer) -> int:
    rows = server.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE()")
    return int(rows[0][0]) - 1  # the one that asks


async def test_no_more_connections_than_allowed_and_none_left_behind(server: MariadbServer, connect: Open) -> None:
    server.execute(TABLE)
    async with open_directory(Config(directory=DirectoryConfig(url=server.url)), Log()) as directory:
        await asyncio.gather(*(directory.users([1]) for _ in range(50)))
        assert 1 <= _connections(server) <= pool.CONNECTIONS
        await directory.check()
        assert 1 <= _connections(server) <= pool.CONNECTIONS
    await until(lambda: _connections(server) == 0)


async def test_whoever_gives_up_spoils_nothing_for_others(server: MariadbServer, directory: MysqlDirectory) -> None:
    server.execute("INSERT INTO user SELECT seq, CONCAT('user', seq), 0 FROM seq_3_to_3000")
    for round_number in range(60):
        asking = [asyncio.create_task(directory.users([number])) for number in range(1, 13)]
        listing = asyncio.create_task(directory.all_ids())
        await asyncio.sleep(round_number * 0.0001)
        for task in asking[::2]:
            task.cancel()
        listing.cancel()
        answers = await asyncio.gather(*asking[1::2])
        assert [list(answer) for answer in answers] == [[number] for number in range(2, 13, 2)]
    assert len(await directory.all_ids()) == 3000
    assert _connections(server) <= pool.CONNECTIONS
    gc.collect()  # a connection that nobody closed would complain


async def test_whoever_gives_up_while_connecting_leaves_nothing(server: MariadbServer, connect: Open) -> None:
    server.execute(TABLE)
    for round_number in range(60):
        directory = await connect()
        asking = asyncio.create_task(directory.check())
        await asyncio.sleep(round_number * 0.0001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        del directory, asking
    gc.collect()


async def test_a_server_that_speaks_something_else(connect: Open) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n" * 2000)
        writer.close()

    stranger = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = stranger.sockets[0].getsockname()[1]
    try:
        with pytest.raises(StoreUnavailable):
            await (await connect(url=f"mysql://root@127.0.0.1:{port}/db")).check()
    finally:
        stranger.close()


# ---- TLS


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariadbServer]:
    """A server that shows a certificate for 127.0.0.1 and knows a user who may not come without TLS."""
    if mariadb.found("mariadbd") is None:
        pytest.skip("mariadbd is not installed")
    pem = tmp_path_factory.mktemp("tls") / "server.pem"
    pem.write_bytes(_certificate("127.0.0.1"))
    started = MariadbServer(f"--ssl-cert={pem}", f"--ssl-key={pem}")
    started.pem = pem  # type: ignore[attr-defined]
    try:
        started.install()
        started.start()
        started.new_database()
        started.execute(TABLE)
        started.execute("INSERT INTO user VALUES (1, 'ann', 1)")
        started.execute("CREATE USER safe@'%' IDENTIFIED BY 'secret' REQUIRE SSL")
        started.execute(f"GRANT SELECT ON {started.database}.user TO safe@'%'")
        yield started
    finally:
        started.remove()


def _certificate(address: str) -> bytes:
    """Self-signed, with its key, in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)


@pytest.mark.parametrize("options", ["?ssl_ca={pem}", "?ssl_verify=false"])
async def test_tls(tls_server: Any, options: str) -> None:
    url = tls_server.url_for("safe", "secret", options=options.format(pem=tls_server.pem))
    async with open_directory(Config(directory=DirectoryConfig(url=url)), Log()) as directory:
        await directory.check()
        assert await asyncio.gather(*(directory.users([1]) for _ in range(8))) == [{1: ANN}] * 8
        tls_server.restart()
        assert await directory.users([1]) == {1: ANN}


async def test_certificates_of_strangers(tls_server: Any) -> None:
    url = tls_server.url_for("safe", "secret", options="?ssl=true")
    async with open_directory(Config(directory=DirectoryConfig(url=url)), Log()) as directory:
        text = await _complaint(directory)
    assert text.startswith("directory.url: ")
    assert "certificate verify failed" in text


async def test_whoever_gives_up_during_the_handshake_leaves_nothing(tls_server: Any) -> None:
    url = tls_server.url_for("safe", "secret", options="?ssl_verify=false")
    for round_number in range(60):
        async with open_directory(Config(directory=DirectoryConfig(url=url)), Log()) as directory:
            asking = asyncio.create_task(directory.check())
            await asyncio.sleep(round_number * 0.0002)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        del directory, asking
    gc.collect()
    await until(lambda: _connections(tls_server) == 0)


# ---- a uid without a name


@pytest.mark.parametrize("error", ["OSError", "KeyError"])  # of Python from 3.13 on, and before
async def test_a_process_whose_user_has_no_name(server: MariadbServer, error: str) -> None:
    server.execute(TABLE)
    server.execute("INSERT INTO user VALUES (1, 'ann', 1)")
    code = f"""
import asyncio, getpass, os
named = getpass.getuser
def getuser():
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        raise {error}("no name")
    return named()
getpass.getuser = getuser
from pushd.config.schema import Config, DirectoryConfig
from pushd.stores.mysql import open_directory
async def main():
    config = Config(directory=DirectoryConfig(url={server.url!r}))
    async with open_directory(config, lambda *_: None) as directory:
        print(await directory.all_ids())
asyncio.run(main())
"""
    environ = {
        name: value for name, value in os.environ.items() if name not in ("LOGNAME", "USER", "LNAME", "USERNAME")
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert await process.communicate() == (b"[1]\n", None)
