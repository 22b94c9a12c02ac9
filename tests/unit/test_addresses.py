"""One text for all spellings of an address, and what it counts as."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.edge.addresses import canonical, counted_as


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1%eth0", "192.0.2.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:0db8::0001", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1%1", "::1"),
        ("::1", "::1"),
        *((text, "") for text in ("", "host", "192.0.2.1:80", "[::1]", "192.0.2.01", "192.0.2", "::g", "1%1", "::%")),
    ],
)
def test_spellings(text: str, expected: str) -> None:
    assert canonical(text) == expected


@given(st.ip_addresses(v=6))
def test_any_spelling_of_an_ipv6_address(address: IPv6Address) -> None:
    spellings = {address.compressed, address.exploded, address.exploded.upper(), f"{address}%lo"}
    expected = str(address.ipv4_mapped or address)
    assert {canonical(text) for text in spellings} == {expected}


@given(st.ip_addresses(v=4))
def test_ipv4_counts_as_itself(address: IPv4Address) -> None:
    for text in (f"{address}", f"::ffff:{address}", f"::FFFF:{address}%1"):
        assert counted_as(canonical(text)) == str(address)
    assert counted_as(canonical(f"64:ff9b::{address}")) == str(address)


@given(st.ip_addresses(v=6, network="2000::/3"), st.integers(0, 2**64 - 1), st.integers(0, 127))
def test_ipv6_counts_by_64(address: IPv6Address, host: int, bit: int) -> None:
    base = int(address) >> 64 << 64
    assert counted_as(str(IPv6Address(base | host))) == counted_as(str(address))
    other = IPv6Address(int(address) ^ 1 << bit)
    assert (counted_as(str(other)) == counted_as(str(address))) is (bit < 64)


def test_nothing_counts_as_nothing() -> None:
    assert counted_as(canonical("")) == ""
