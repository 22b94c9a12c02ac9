"""IP addresses as they are shown and counted: one text for all spellings of an address. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cachetools import LRUCache

from pushd.config.schema import LimitsConfig
from pushd.limits import TokenBucket

REMEMBERED = 1024
TOO_MANY_CONNECTIONS = "too many connections from this address"
TOO_MANY_CONNECTS = "too many connects from this address"
CONNECTS_REMEMBERED = 10_000  # addresses whose rate of connects is known
NAT64_PREFIX = 0x0064FF9B << 96  # 64:ff9b::/96 (RFC 6052): the last 32 bits are an IPv4 address
IPV4_BITS = 0xFFFFFFFF


@lru_cache(REMEMBERED)
def canonical(text: str) -> str:
    """The address as RFC 5952 writes it, without a zone; IPv4 in IPv6 clothes is IPv4; "" for what is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Address(int(address)))


def counted_as(address: str) -> str:
    """What a canonical address counts as: IPv4 as itself, IPv6 as its /64, for who has one address has them all."""
    return _network_of(address) if ":" in address else address


@lru_cache(REMEMBERED)
def _network_of(address: str) -> str:
    number = int(IPv6Address(address))
    if number & ~IPV4_BITS == NAT64_PREFIX:  # else all of IPv4 behind such a translator would be one
        return str(IPv4Address(number & IPV4_BITS))
    return f"{IPv6Address(number >> 64 << 64)}/64"


@lru_cache(maxsize=4)
def networks(texts: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """The networks so written; one of IPv4 in IPv6 clothes is one of IPv4."""
    return tuple(_plain(ip_network(text)) for text in texts)


def _plain(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


def is_within(address: str, among: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Whether a canonical address is in one of the networks; "" is in none."""
    if not (among and address):
        return False
    parsed = ip_address(address)
    return any(parsed in network for network in among)


class Addresses:
    """Counts open connections by address, and holds how many each may have and open in a minute.

    A connection counts from the accept on by its peer's address, but from a trusted proxy only once its head has named
    the client, and by that. Whoever calls `enter` calls `leave` once, with the same address.
    """

    def __init__(self, trusted_proxies: tuple[str, ...] = (), *, now: Callable[[], float] = time.monotonic) -> None:
        self._proxies = networks(trusted_proxies)
        self._now = now
        self._open: Counter[str] = Counter()
        self._connects: LRUCache[str, TokenBucket] = LRUCache(CONNECTS_REMEMBERED)

    def is_counted_at_accept(self, peer: str) -> bool:
        """Whether connections from this address are its own, not those of a proxy's clients."""
        return not is_within(peer, self._proxies)

    def open_from(self, address: str) -> int:
        """How many are open from where this address counts."""
        return self._open[counted_as(address)]

    def find_fault(self, address: str, limits: LimitsConfig) -> str:
        """Why one more may not come, "" if it may. That it asked counts for `connects_per_ip_per_min`."""
        if self.is_full(address, limits):
            return TOO_MANY_CONNECTIONS
        if limits.connects_per_ip_per_min and not self._has_connect_left(address, limits.connects_per_ip_per_min):
            return TOO_MANY_CONNECTS
        return ""

    def is_full(self, address: str, limits: LimitsConfig) -> bool:
        """Whether this address has all the connections it may have."""
        return 0 < limits.max_connections_per_ip <= self._open[counted_as(address)]

    def _has_connect_left(self, address: str, per_min: int) -> bool:
        now, counted = self._now(), counted_as(address)
        bucket = self._connects.get(counted)
        if bucket is None:
            bucket = self._connects[counted] = TokenBucket(per_min / 60, per_min, now)
        bucket.rate, bucket.burst = per_min / 60, per_min
        return bucket.take(now)

    def enter(self, address: str) -> None:
        """One more is open."""
        self._open[counted_as(address)] += 1

    def leave(self, address: str) -> None:
        """One of them has ended."""
        counted = counted_as(address)
        left = self._open[counted] - 1
        if left:
            self._open[counted] = left
        else:
            del self._open[counted]
