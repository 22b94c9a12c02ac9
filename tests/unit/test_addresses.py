"""One text for all spellings of an address, and what it counts as."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.config.schema import LimitsConfig
from pushd.http.addresses import CONNECTS_REMEMBERED, Addresses, canonical, counted_as, is_within, networks


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


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.1.2.3", "11.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.0.0.1"),
        ("2001:db8::/32", "2001:db8::1", "2001:db9::1"),
        ("192.0.2.1", "192.0.2.1", ""),
    ],
)
def test_networks(network: str, inside: str, outside: str) -> None:
    assert is_within(inside, networks((network,)))
    assert not is_within(outside, networks((network,)))
    assert Addresses((network,)).is_counted_at_accept(inside) is False
    assert Addresses((network,)).is_counted_at_accept(outside) is True


SOME = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"])


@given(st.lists(st.tuples(SOME, st.booleans()), max_size=60))
def test_counts_follow_who_comes_and_goes(steps: list[tuple[str, bool]]) -> None:
    addresses, limits, open_now = Addresses(), LimitsConfig(max_connections_per_ip=2), list[str]()
    for address, comes in steps:
        same = [one for one in open_now if counted_as(one) == counted_as(address)]
        assert addresses.open_from(address) == len(same)
        assert addresses.is_full(address, limits) is (len(same) >= 2)
        if comes:
            addresses.enter(address)
            open_now.append(address)
        elif same:
            addresses.leave(same[0])
            open_now.remove(same[0])
    for address in open_now:
        addresses.leave(address)
    assert not addresses._open, "nothing is kept of who has left"


def test_connects_in_a_minute() -> None:
    now = 0.0
    addresses, limits = Addresses(now=lambda: now), LimitsConfig(connects_per_ip_per_min=2)
    tries = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"]
    assert [bool(addresses.find_fault(address, limits)) for address in tries] == [False, False, True, False]
    now = 30.0
    assert [bool(addresses.find_fault("2001:db8::4", limits)) for _ in range(2)] == [False, True]


def test_so_many_addresses_are_remembered() -> None:
    addresses, limits = Addresses(), LimitsConfig(connects_per_ip_per_min=1)
    for number in range(CONNECTS_REMEMBERED + 100):
        addresses.find_fault(str(IPv4Address(number)), limits)
    assert len(addresses._connects) == CONNECTS_REMEMBERED
