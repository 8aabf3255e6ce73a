"""For whom mail is taken: exact names, wildcards matched label by label, and address literals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import Address
from guerrilla.smtp.address import parse_path
from guerrilla.smtp.hosts import AllowedHosts


def allows(names: list[str], host: str) -> bool:
    """Tell whether mail for the host is taken, the address read as the dialogue reads it."""
    return AllowedHosts(names).allows(parse_path(f"<a@{host}>".encode())[0])


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("example.com", "example.com"),
        ("Example.COM", "exAMple.com"),
        ("*.example.com", "a.example.com"),
        ("*.example.com", "a.b.example.com"),
        ("*.la", "grr.la"),
        ("mail*.example.com", "mail12.example.com"),
        ("mail*.example.com", "mail.example.com"),
        ("mail?.example.com", "mail1.example.com"),
        ("*", "any.example.com"),
        (".", "any.example.com"),
        (".", "[192.0.2.1]"),
        ("bücher.example", "bücher.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "bücher.example"),
        ("BÜCHER.example", "Bücher.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[2001:db8::1]", "[IPv6:2001:DB8:0:0::1]"),
        ("[IPv6:2001:db8:0::1]", "[ipv6:2001:db8::1]"),
    ],
)
def test_mail_is_taken_for_the_hosts_that_are_named(name: str, host: str) -> None:
    assert allows([name], host)
    assert allows(["other.test", "*.other.test", name], host)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("example.com", "example.com.attacker.net"),
        ("example.com", "notexample.com"),
        ("example.com", "a.example.com"),
        ("*.example.com", "example.com"),
        ("*.example.com", "a.example.com.attacker.net"),
        ("*.example.com", "aexample.com"),
        ("*.la", "evil.grr.la.attacker.com"),
        ("mail*.example.com", "mail.evil.example.com"),
        ("mail?.example.com", "mail.example.com"),
        ("mail?.example.com", "mail12.example.com"),
        ("a.b", "axb"),
        ("*", "[192.0.2.1]"),
        ("*.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "192.0.2.1"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]", "[192.0.2.2]"),
        ("bücher.example", "bucher.example"),
        ("example.com", "bücher.example"),
    ],
)
def test_mail_is_not_taken_for_others(name: str, host: str) -> None:
    assert not allows([name], host)


@pytest.mark.parametrize("user", ["a%other.test", "a!b", '"a@ours.test"', "@ours.test:a", '"x@ours.test>"'])
def test_only_the_domain_counts_not_a_route_or_a_local_part(user: str) -> None:
    path = f"<{user}@other.test>".encode()
    assert not AllowedHosts(["ours.test"]).allows(parse_path(path)[0])


def test_postmaster_without_a_domain_is_always_taken() -> None:
    assert AllowedHosts([]).allows(Address("postmaster"))
    assert not AllowedHosts([]).allows(Address("postmaster", "x.test"))


@pytest.mark.parametrize("name", ["[]", "[x]", "[1.2.3]", "[1.2.3.4", "[1.2.3.45", "[IPv6:1.2.3]", "["])
def test_brackets_without_an_address_are_a_mistake(name: str) -> None:
    with pytest.raises(ValueError, match=r"address|bracket"):
        AllowedHosts([name])


@given(st.lists(st.text(min_size=1, max_size=30).filter(lambda name: name[0] != "["), max_size=4))
def test_any_other_name_can_be_configured(names: list[str]) -> None:
    hosts = AllowedHosts(names)
    for host in ("x" * 63 + ".test", "ü.test", "[192.0.2.1]"):
        assert hosts.allows(Address("a", host)) in (True, False)
