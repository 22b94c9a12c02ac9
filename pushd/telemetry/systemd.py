"""The sd_notify protocol: tell the service manager when the daemon is ready and when it stops (sd_notify(3))."""

from __future__ import annotations

import socket


def notify(address: str | None, state: str) -> None:
    """Send `state`, such as "READY=1", to $NOTIFY_SOCKET. Without an address, or with nobody there: nothing."""
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        pass
