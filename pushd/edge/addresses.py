"""IP addresses as they are shown and counted: one text for all spellings of an address. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

REMEMBERED = 1024
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
