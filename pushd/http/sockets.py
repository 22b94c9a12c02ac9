"""Listening sockets, TLS and descriptors: what the port needs from the operating system before it serves."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from pushd.errors import StartError
from pushd.http.addresses import canonical

BACKLOG = 4096
# Accepted sockets inherit both. The first keeps what is read at once, and with it picows' buffer, which never shrinks,
# small; the second is what the kernel keeps for a slow reader.
RECEIVE_BUFFER_BYTES = 32 * 1024
SEND_BUFFER_BYTES = 64 * 1024
SPARE_DESCRIPTORS = 256  # for files, stores, and connections that are told that there is no room

# "::" means IPv4 too, as it does for most servers: with sockets of its own, so that addresses look like IPv4.
_BOTH = {"localhost": ("127.0.0.1", "::1"), "::": ("0.0.0.0", "::")}
_ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
_Address = tuple[socket.AddressFamily, tuple[Any, ...]]

_log = structlog.get_logger("pushd.front")


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`, IPv4 first, all on one port; port 0 takes a free one.

    "localhost" and "::" mean both kinds of addresses. Those this machine does not have are left out, and with
    port 0 also those where the port is taken, as long as one is left. Raises StartError otherwise.
    """
    listeners: list[socket.socket] = []
    for family, address in _resolve(host, port):
        real_port = listeners[0].getsockname()[1] if listeners else port
        try:
            listeners.append(_open(family, (address[0], real_port, *address[2:])))
        except OSError as error:
            if error.errno in _ABSENT or (listeners and port == 0):
                absent = error
                continue
            for listener in listeners:
                listener.close()
            raise _cannot_listen(host, port, error) from error
    if not listeners:
        raise _cannot_listen(host, port, absent) from absent
    return listeners


def _resolve(host: str, port: int) -> list[_Address]:
    is_zoned = "%" in host  # names one interface, and "::" all of them
    names = (host,) if is_zoned else _BOTH.get(canonical(host) or host.lower(), (host,))
    try:
        found = [info for name in names for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    addresses: list[_Address] = [(family, address) for family, _, _, _, address in found]
    return sorted(dict.fromkeys(addresses), key=lambda item: item[0] != socket.AF_INET)


def _open(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(host: str, port: int, error: Exception) -> StartError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return StartError(f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}: {reason}")


def tls_context(cert_file: str, key_file: str) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with this certificate and key; None when neither is named. StartError names the bad file."""
    if not cert_file and not key_file:
        return None
    for file in (cert_file, key_file):
        _check_readable(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password function, an encrypted key would ask on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise StartError(f"cannot use TLS certificate {cert_file} with key {key_file}: {reason}") from error
    return context


def _check_readable(file: str) -> None:
    try:
        Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise StartError(f"cannot read TLS file {file!r}: {getattr(error, 'strerror', None) or error}") from error


def room_for(
    max_connections: int,
    *,
    getrlimit: Callable[[int], tuple[int, int]] = resource.getrlimit,
    setrlimit: Callable[[int, tuple[int, int]], None] = resource.setrlimit,
) -> int:
    """How many connections the descriptors suffice for, after taking as many of them as this process may have."""
    soft, hard = getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return max_connections
    room = max(soft - SPARE_DESCRIPTORS, soft // 4)
    if room < max_connections:
        _log.warning("too few descriptors", max_connections=max_connections, descriptors=soft, effective_limit=room)
    return room
