"""sd_notify, to a real datagram socket."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from pushd.telemetry import systemd


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_is_told(is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a short path: sun_path has 108 bytes
    name = f"@pushd-test-{secrets.token_hex(8)}" if is_abstract else "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1))
        manager.setblocking(False)
        systemd.notify(name, "READY=1")
        systemd.notify(name, "STOPPING=1")
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


@pytest.mark.parametrize("address", [None, "", "missing.sock", "@pushd-nobody-is-there", "x" * 200])
def test_without_anybody_there_nothing_happens(
    address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    systemd.notify(address, "READY=1")
