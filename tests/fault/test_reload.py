"""SIGHUP while there is work to do: nobody notices but those whom the change concerns (CONTRACT section 1)."""

from __future__ import annotations

import asyncio
import signal
import ssl
from pathlib import Path
from typing import Any

from tests.certificates import certificate as certificate  # a fixture
from tests.certificates import write_certificate
from tests.daemon import Client, Probe, Process, until
from tests.raw import Raw, upgrade

RELOADS = 60


async def publishing(probe: Probe, accepted: list[str], is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        accepted.append((await probe.publish(target="all", wait_ms=0))["message_id"])


async def reading(client: Client, got: list[str]) -> None:
    while True:
        message = await client.receive(60)
        got.append(message["message_id"])
        await client.ack(message["message_id"])


async def test_nobody_notices_reloads_under_load(tmp_path: Path) -> None:
    users = range(1, 21)
    async with Process(tmp_path, limits={"max_frames_per_s": 100_000}) as daemon, await daemon.start() as probe:
        good = daemon.config_file.read_text()
        clients = [await probe.client(user_id, ack=True) for user_id in users]
        got: dict[int, list[str]] = {user_id: [] for user_id in users}
        readers = [asyncio.create_task(reading(client, got[user])) for user, client in zip(users, clients, strict=True)]
        accepted: list[str] = []
        is_over = asyncio.Event()
        publishers = [asyncio.create_task(publishing(probe, accepted, is_over)) for _ in range(4)]
        for number in range(RELOADS):
            changed = f"{good}\nmax_pending_bytes = {500_000 + number}\nmax_frame_bytes = {8_000 + number}\n"
            daemon.config_file.write_text("not toml" if number % 5 == 1 else changed)
            await daemon.signal(signal.SIGHUP)
            await asyncio.sleep(0.01)
        await until(lambda: any(event["event"] == "configuration reloaded" for event in daemon.events()))
        is_over.set()
        await asyncio.gather(*publishers)
        await until(lambda: all(set(accepted) == set(ids) for ids in got.values()))
        assert not any(reader.done() for reader in readers)  # no connection was closed
        assert all(ids == list(dict.fromkeys(ids)) for ids in got.values())  # and nothing came twice
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        failures = {event["event"] for event in daemon.events() if event["level"] in ("error", "critical")}
        assert failures == {"configuration not reloaded, nothing is changed"}


async def certificate_of(port: int) -> bytes:
    """What a new handshake is shown."""
    stranger = ssl.create_default_context()
    stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
    async with await Raw.connect(port, tls=stranger) as client:
        shown: Any = client.writer.get_extra_info("ssl_object")
        return bytes(shown.getpeercert(binary_form=True))


async def reloaded(daemon: Process, event: str) -> None:
    before = sum(1 for entry in daemon.events() if entry["event"] == event)
    await daemon.signal(signal.SIGHUP)
    await until(lambda: sum(1 for entry in daemon.events() if entry["event"] == event) > before)


async def test_a_certificate_that_was_renewed(tmp_path: Path, certificate: dict[str, str]) -> None:
    cert_file, key_file = Path(certificate["tls_cert"]), Path(certificate["tls_key"])

    def on_disk() -> bytes:
        return ssl.PEM_cert_to_DER_cert(cert_file.read_text())

    async with Process(tmp_path, server=certificate) as daemon:
        await daemon.start()
        trust = ssl.create_default_context(cafile=cert_file)
        async with await Raw.connect(daemon.port, tls=trust) as client:
            client.send(upgrade("/ws?user_id=7"))
            assert await client.head() == 101
            await client.frame()
            assert await certificate_of(daemon.port) == (first := on_disk())

            write_certificate(cert_file, key_file)
            assert await certificate_of(daemon.port) == first  # not before it is told
            await reloaded(daemon, "configuration reloaded")
            assert await certificate_of(daemon.port) == (second := on_disk())
            assert second != first

            for cert, key in (("", ""), ("garbage", None), (None, "garbage"), (cert_file.read_text() * 2, "x")):
                good = cert_file.read_bytes(), key_file.read_bytes()
                cert_file.write_text(cert if cert is not None else good[0].decode())
                key_file.write_text(key if key is not None else good[1].decode())
                await reloaded(daemon, "configuration not reloaded, nothing is changed")
                cert_file.write_bytes(good[0])
                key_file.write_bytes(good[1])
                assert await certificate_of(daemon.port) == second
            other_cert, other_key = tmp_path / "other.pem", tmp_path / "other.key"
            write_certificate(other_cert, other_key)
            text = daemon.config_file.read_text().replace(str(cert_file), str(other_cert))
            daemon.config_file.write_text(text)  # the certificate of another key
            await reloaded(daemon, "configuration not reloaded, nothing is changed")
            assert await certificate_of(daemon.port) == second
            daemon.config_file.write_text(text.replace(str(key_file), str(other_key)))  # other files
            await reloaded(daemon, "configuration reloaded")
            assert await certificate_of(daemon.port) == ssl.PEM_cert_to_DER_cert(other_cert.read_text())

            client.send(bytes([0x89, 0x80, 0, 0, 0, 0]))  # the old connection is still there: PING, PONG
            assert (await client.frame()).opcode == 0xA
