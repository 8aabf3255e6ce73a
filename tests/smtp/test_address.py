"""Paths of MAIL and RCPT: what is read, what is refused with which reply, and that no input ends otherwise."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from unicodedata import normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guerrilla.envelope import NULL_PATH, Address
from guerrilla.smtp import address as module
from guerrilla.smtp.address import AddressError, parse_path
from guerrilla.smtp.replies import (
    BAD_RECIPIENT,
    BAD_SENDER,
    DOMAIN_TOO_LONG,
    LOCAL_PART_TOO_LONG,
    PATH_TOO_LONG,
    Reply,
)

LABEL = "l" * 63
LONG_DOMAIN = f"{LABEL}.{LABEL}.{LABEL}.{LABEL}"  # 255 octets
QUOTE = chr(92) + chr(34)


def literal(user: str, text: str) -> Address:
    """Return the address that has an address literal."""
    ip = ip_address(text)
    return Address(user, f"[IPv6:{ip}]" if ip.version == 6 else f"[{ip}]", ip)


GOOD: list[tuple[str, Address, str]] = [
    # Ordinary paths, and what follows them.
    ("<a@b>", Address("a", "b"), ""),
    ("<user@example.com>", Address("user", "example.com"), ""),
    ("<User.Name@Example.COM>", Address("User.Name", "example.com"), ""),
    ("<user+tag@example.com>", Address("user+tag", "example.com"), ""),
    ("<!#$%&'*+-/=?^_`{|}~@example.com>", Address("!#$%&'*+-/=?^_`{|}~", "example.com"), ""),
    ("<-rf@example.com>", Address("-rf", "example.com"), ""),
    ("<123@456.789>", Address("123", "456.789"), ""),
    ("<a@1.2.3.4>", Address("a", "1.2.3.4"), ""),
    ("<a@xn--bcher-kva.example>", Address("a", "xn--bcher-kva.example"), ""),
    ("<a@a-b--c.d>", Address("a", "a-b--c.d"), ""),
    ("<a@my_host.example.com>", Address("a", "my_host.example.com"), ""),
    ("<a@b> ", Address("a", "b"), ""),
    ("<a@b> SIZE=5", Address("a", "b"), "SIZE=5"),
    ("<a@b>   SIZE=5  BODY=8BITMIME  ", Address("a", "b"), "SIZE=5  BODY=8BITMIME"),
    ("<a@b> AUTH=<>", Address("a", "b"), "AUTH=<>"),
    ("<a@b> AUTH=c@d", Address("a", "b"), "AUTH=c@d"),
    ("<a@b> ORCPT=rfc822;(c),d@e", Address("a", "b"), "ORCPT=rfc822;(c),d@e"),
    ("<a@b> ORCPT=utf-8;ü@e", Address("a", "b"), "ORCPT=utf-8;ü@e"),
    # What real devices send.
    (" <a@b>", Address("a", "b"), ""),
    ("   <a@b> SIZE=5", Address("a", "b"), "SIZE=5"),
    ("a@b", Address("a", "b"), ""),
    ("a@my_host.example.com", Address("a", "my_host.example.com"), ""),
    ("  a@b SIZE=5", Address("a", "b"), "SIZE=5"),
    ("a@b  ", Address("a", "b"), ""),
    ('"a b"@c SIZE=5', Address("a b", "c"), "SIZE=5"),
    ('"a\\" b"@c SIZE=5', Address('a" b', "c"), "SIZE=5"),
    ("a@[192.0.2.1] SIZE=5", literal("a", "192.0.2.1"), "SIZE=5"),
    # Quoted local parts.
    ('<"abc"@x>', Address("abc", "x"), ""),
    ('<"a b"@x>', Address("a b", "x"), ""),
    ('<" "@x>', Address(" ", "x"), ""),
    ('<""@x>', Address("", "x"), ""),
    ('<"a@b"@x>', Address("a@b", "x"), ""),
    ('<"a>b"@x>', Address("a>b", "x"), ""),
    ('<"<a@b>"@x> SIZE=5', Address("<a@b>", "x"), "SIZE=5"),
    ('<"a> SIZE=5"@x>', Address("a> SIZE=5", "x"), ""),
    ('<"a\\"b"@x>', Address('a"b', "x"), ""),
    ('<"a\\\\"@x>', Address("a\\", "x"), ""),
    ('<"\\a\\b"@x>', Address("ab", "x"), ""),
    ('<"a\\ b"@x>', Address("a b", "x"), ""),
    ('<".a..b."@x>', Address(".a..b.", "x"), ""),
    ('<"(c),:;[d]"@x>', Address("(c),:;[d]", "x"), ""),
    ('<"../../etc/passwd"@x>', Address("../../etc/passwd", "x"), ""),
    # Plain data, whatever another program makes of it.
    ("<a%b@d>", Address("a%b", "d"), ""),
    ("<a!b@d>", Address("a!b", "d"), ""),
    ("<|cmd@d>", Address("|cmd", "d"), ""),
    ("<${run{id}}@d>", Address("${run{id}}", "d"), ""),
    ('<"a/../../b"@d>', Address("a/../../b", "d"), ""),
    # Source routes.
    ("<@a:b@c>", Address("b", "c", None, ("a",)), ""),
    ("<@A.x,@b:c@D> SIZE=5", Address("c", "d", None, ("a.x", "b")), "SIZE=5"),
    ('<@a,@b,@c:"d:@e"@f>', Address("d:@e", "f", None, ("a", "b", "c")), ""),
    ("<@a:b@[IPv6:::1]>", replace(literal("b", "::1"), route=("a",)), ""),
    ("<@bücher.example:b@c>", Address("b", "c", None, ("bücher.example",)), ""),
    # Address literals.
    ("<a@[1.2.3.4]>", literal("a", "1.2.3.4"), ""),
    ("<a@[0.0.0.0]>", literal("a", "0.0.0.0"), ""),
    ("<a@[255.255.255.255]>", literal("a", "255.255.255.255"), ""),
    ("<a@[IPv6:2001:db8::1]>", literal("a", "2001:db8::1"), ""),
    ("<a@[ipv6:2001:DB8:0:0:0:0:0:1]>", literal("a", "2001:db8::1"), ""),
    ("<a@[IPv6:::]>", literal("a", "::"), ""),
    ("<a@[IPv6:::ffff:1.2.3.4]>", literal("a", "::ffff:1.2.3.4"), ""),
    ('<"a b"@[1.2.3.4]>', literal("a b", "1.2.3.4"), ""),
    # RFC 6531.
    ("<jürgen@example.com>", Address("jürgen", "example.com"), ""),
    ("<a@bücher.example>", Address("a", "bücher.example"), ""),
    ("<A@BÜCHER.EXAMPLE>", Address("A", "bücher.example"), ""),
    ("<a@bu\u0308cher.example>", Address("a", "bücher.example"), ""),
    ("<u\u0308@x>", Address("u\u0308", "x"), ""),
    ("<用户@例子.测试> SMTPUTF8", Address("用户", "例子.测试"), "SMTPUTF8"),
    ("用户@例子.测试 SMTPUTF8", Address("用户", "例子.测试"), "SMTPUTF8"),
    ("<अजय@डाटा.भारत>", Address("अजय", "डाटा.भारत"), ""),
    ("<a@हिन्दी.भारत>", Address("a", "हिन्दी.भारत"), ""),
    ('<"ü ü"@x>', Address("ü ü", "x"), ""),
    ("<😀.😀@x>", Address("😀.😀", "x"), ""),
    ("<a\u00a0b@x>", Address("a\u00a0b", "x"), ""),
    # The longest that are taken.
    (f"<{'u' * 128}@x>", Address("u" * 128, "x"), ""),
    (f'<"{"u" * 128}"@x>', Address("u" * 128, "x"), ""),
    (f"<{'ü' * 64}@x>", Address("ü" * 64, "x"), ""),
    (f"<a@{LABEL}>", Address("a", LABEL), ""),
    (f"<a@{LABEL}.b>", Address("a", f"{LABEL}.b"), ""),
    (f"<a@{LONG_DOMAIN}>", Address("a", LONG_DOMAIN), ""),
    (
        f"<@{LONG_DOMAIN}:{'u' * 128}@{LABEL}.{LABEL[1:]}>",
        Address("u" * 128, f"{LABEL}.{LABEL[1:]}", None, (LONG_DOMAIN,)),
        "",
    ),
    (f"<@{'a,@' * 168}b:c@d>", Address("c", "d", None, ("a",) * 168 + ("b",)), ""),
]

BAD: list[bytes] = [
    # Not a path.
    b"",
    b" ",
    b"SIZE=5",
    b" SIZE=5",
    b"< >",
    b"<",
    b">",
    b"<@>",
    b"@",
    b"a",
    b"<a>",
    b"<a@>",
    b"<@b>",
    b"<@b:>",
    # Brackets that do not match, or something close behind them.
    b"<a@b",
    b"a@b>",
    b"aa@b>",
    b"<<a@b>>",
    b"<a@b>>",
    b"<<a@b>",
    b"<a<b@c>",
    b"<a@b>x",
    b"<a@b>SIZE=5",
    b"<>x",
    b"<a@b>\tSIZE=5",
    b"<a@b> \tSIZE=5",
    b"\t<a@b>",
    b"\xa0<a@b>",
    "\xa0<a@b>".encode(),
    "\u2003<a@b>".encode(),
    # More than one address, comments, display names.
    b"<a@b><c@d>",
    b"<a@b>,<c@d>",
    b"<a@b> <c@d>",
    b"<a@b>  c@d",
    b"a@b,c@d",
    b"a@b c@d",
    b"<a@b,c@d>",
    b"<a@b@c>",
    b"<(x)a@b>",
    b"<a(x)@b>",
    b"<a@b(x)>",
    b"<a@b> (x)",
    b"Name <a@b>",
    b'"Name" <a@b>',
    b"Group:a@b;",
    # Spaces outside quotes.
    b"< a@b>",
    b"<a@b >",
    b"<a b@c>",
    b"a b@c",
    b"<a @b>",
    b"<a@ b>",
    b"<a@b c>",
    # Local parts.
    b"<@b>",
    b"<.a@b>",
    b"<a.@b>",
    b"<a..b@c>",
    b"<.@b>",
    b"<..@d>",
    b"<a,b@c>",
    b"<a;b@c>",
    b"<a:b@c>",
    b"<a[b@c>",
    b"<a\\b@c>",
    b'<a"b"@c>',
    b'<"a"b@c>',
    b'<"a"."b"@c>',
    b'<"a@b>',
    b'<"a" @b>',
    b'<"a"b"@c>',
    b'<"a\\"@b>',
    b'<"a"@b"@c>',
    b'"a@b',
    '<"a\\ü"@b>'.encode(),
    # Control characters, in quotes too.
    b"<a\x00b@c>",
    b'<"a\x00b"@c>',
    b'<"a\tb"@c>',
    b'<"a\rb"@c>',
    b'<"a\nb"@c>',
    b'<"a\\\nb"@c>',
    b'<"a\x1b[2Jb"@c>',
    b"<a\x7fb@c>",
    b'<"a\x7fb"@c>',
    b"<a@b\n>",
    b"<a@b>\n",
    b"<a@b\x00.c>",
    b"<a@b> SIZE=5\x00",
    b"<a@b> SIZE=5\r",
    "<a\x80b@c>".encode(),
    '<"a\x85b"@c>'.encode(),
    "<a@b\x9fc>".encode(),
    # Not UTF-8.
    b"<\xff@b>",
    b"<a\xe4@b>",
    b"<a@b\xe4>",
    b"<a\xc0\xaeb@c>",
    b"<a\xe0\x80\xafb@c>",
    b"<a\xed\xa0\x80b@c>",
    b"<a\xf4\x90\x80\x80b@c>",
    b"<a@b> ORCPT=\xff",
    # Domains.
    b"<a@b.>",
    b"<a@.b>",
    b"<a@b..c>",
    b"<a@.>",
    b"<a@-b>",
    b"<a@b->",
    b"<a@b.-c.d>",
    b"<a@b-.c>",
    b"<a@_b>",
    b"<a@b_>",
    b"<a@b/c>",
    b"<a@b%c>",
    b"<a@*.b>",
    b"<a@b:25>",
    b'<a@"b">',
    b"<a@" + b"l" * 64 + b">",
    b"<a@b." + b"l" * 64 + b".c>",
    "<a@b\u3002c>".encode(),
    "<a@b\u00a0c>".encode(),
    "<a@b\u200dc>".encode(),
    "<a@b\u202ec>".encode(),
    "<a@\u0308b>".encode(),
    "<a@b.\u0308>".encode(),
    "<a@😀>".encode(),
    "<a@\u212a.com>".encode(),
    # Source routes.
    b"<@a>",
    b"<@a,@b>",
    b"<@a,b:c@d>",
    b"<@a,bb:c@d>",
    b"<@a,:c@d>",
    b"<,@a:c@d>",
    b"<@a, @b:c@d>",
    b"<@a:@b:c@d>",
    b"<@[1.2.3.4]:c@d>",
    b"<@a..b:c@d>",
    b"<@:c@d>",
    b"<:c@d>",
    b"<@a:postmaster>",
    # Address literals.
    b"<a@[]>",
    b"<a@[1.2.3.4>",
    b"<a@[1.2.3.44>",
    b"<a@1.2.3.4]>",
    b"<a@[1.2.3]>",
    b"<a@[1.2.3.4.5]>",
    b"<a@[1.2.3.256]>",
    b"<a@[1.2.3.04]>",
    b"<a@[0x1.2.3.4]>",
    b"<a@[+1.2.3.4]>",
    b"<a@[ 1.2.3.4]>",
    b"<a@[1.2.3.4/32]>",
    b"<a@[16909060]>",
    "<a@[１.2.3.4]>".encode(),
    b"<a@[1.2.3.4].b>",
    b"<a@[1.2.3.4]]>",
    b"<a@[[1.2.3.4]]>",
    b"<a@b.[1.2.3.4]>",
    b"<a@[2001:db8::1]>",
    b"<a@[IPv6:]>",
    b"<a@[IPv6:1.2.3.4]>",
    b"<a@[IPv6:fe80::1%eth0]>",
    b"<a@[IPv6:fe80::1%]>",
    b"<a@[IPv6:1::2::3]>",
    b"<a@[IPv6:12345::]>",
    b"<a@[IPv6: ::1]>",
    b"<a@[IPv6:::1/128]>",
    b"<a@[IPv6:::1.2.3.04]>",
    b"<a@[IPv4:1.2.3.4]>",
    b"<a@[x:y]>",
    b"<a@[example.com]>",
]

TOO_LONG: list[tuple[str, Reply]] = [
    (f"<{'u' * 129}@x>", LOCAL_PART_TOO_LONG),
    (f'<"{"u" * 129}"@x>', LOCAL_PART_TOO_LONG),
    (f"<{'ü' * 65}@x>", LOCAL_PART_TOO_LONG),
    (f"<a@{LONG_DOMAIN[:-1]}.l>", DOMAIN_TOO_LONG),
    (f"<a@{'ü' * 60}.{'ü' * 60}.{'ü' * 7}>", DOMAIN_TOO_LONG),
    (f"<@{LONG_DOMAIN}.l:a@b>", DOMAIN_TOO_LONG),
    (f"<@{'a,@' * 168}bbbbb:c@d>", PATH_TOO_LONG),
    (f"<@{LONG_DOMAIN}:{'u' * 128}@{LABEL}.{LABEL}>", PATH_TOO_LONG),
    (f"<{'u' * 512}@x>", PATH_TOO_LONG),
    (f"{'u' * 512}@x", PATH_TOO_LONG),
    (f"<{'ü' * 256}@x>", PATH_TOO_LONG),
    (f"<{'@a,' * 600}@b:c@d>", PATH_TOO_LONG),
    # 512 octets as it came, 514 once each İ of two octets has become an i with a dot above, of three.
    (f'<"{QUOTE * 128}"@{"İ" * 2}{LONG_DOMAIN[6:]}>', PATH_TOO_LONG),
]

HOSTILE: list[bytes] = [
    b'<"' + b'\\"' * 50_000,
    b'<"' + b"\\" * 100_001 + b'"@x>',
    b'"a"' * 33_000,
    b'<"a"' * 25_000,
    b"<" * 100_000,
    b" " * 100_000 + b"\x00",
    b"<a@b>" + b" " * 100_000 + b"\x00",
    b"<a@b> " + b"x" * 100_000 + b"<",
    b"<" + b"a." * 50_000 + b">",
    b"<a@" + b"b-" * 50_000 + b">",
    b"<a@" + b"b." * 50_000 + b">",
    b"<" + b"@a," * 33_000 + b":c@d>",
    b"a" * 100_000,
]


@pytest.mark.parametrize(("text", "address", "parameters"), GOOD)
def test_reads_a_good_path_and_leaves_the_parameters(text: str, address: Address, parameters: str) -> None:
    """A path that the grammar or a real device has is read the same for MAIL and RCPT."""
    for forward in (False, True):
        assert parse_path(text.encode(), forward=forward) == (address, parameters.encode())


@pytest.mark.parametrize("data", BAD)
def test_refuses_a_bad_path_with_the_reply_of_its_command(data: bytes) -> None:
    """What is malformed, or could mean two things, is a bad sender in MAIL and a bad recipient in RCPT."""
    with pytest.raises(AddressError) as sender:
        parse_path(data)
    with pytest.raises(AddressError) as recipient:
        parse_path(data, forward=True)
    assert sender.value.reply == BAD_SENDER
    assert recipient.value.reply == BAD_RECIPIENT
    assert str(sender.value), "the log learns the cause"


@pytest.mark.parametrize(("text", "reply"), TOO_LONG)
def test_refuses_what_is_too_long_and_says_which_part(text: str, reply: Reply) -> None:
    """A path, local part or domain beyond its limit has a reply of its own."""
    for forward in (False, True):
        with pytest.raises(AddressError) as caught:
            parse_path(text.encode(), forward=forward)
        assert caught.value.reply == reply


@pytest.mark.parametrize("data", HOSTILE, ids=lambda data: repr(data[:8]))
def test_refuses_hostile_text_of_any_length(data: bytes) -> None:
    """Text that would make a backtracking expression try again and again is simply refused."""
    with pytest.raises(AddressError):
        parse_path(data)


@pytest.mark.parametrize("data", [b"<>", b" <>", b"<> ", b"<> SIZE=5"])
def test_the_null_path_is_a_sender_and_no_recipient(data: bytes) -> None:
    """The sender of bounces cannot be written to."""
    assert parse_path(data) == (NULL_PATH, data.partition(b"> ")[2])
    with pytest.raises(AddressError) as caught:
        parse_path(data, forward=True)
    assert caught.value.reply == BAD_RECIPIENT


@pytest.mark.parametrize("data", [b"<postmaster>", b"<Postmaster>", b" <POSTMASTER>", b"postmaster", b"<postMaster> "])
def test_postmaster_without_domain_is_a_recipient_and_no_sender(data: bytes) -> None:
    """The one recipient without domain is read in any case of letters, and is one mailbox."""
    assert parse_path(data, forward=True) == (Address("postmaster"), b"")
    with pytest.raises(AddressError) as caught:
        parse_path(data)
    assert caught.value.reply == BAD_SENDER


@pytest.mark.parametrize(
    "text",
    [
        "<postmaster-news>",
        "<postmasters>",
        "<apostmaster>",
        '<"postmaster">',
        "<root>",
        "<postmaster@>",
        "<poſtmaster>",
    ],
)
def test_no_other_recipient_goes_without_domain(text: str) -> None:
    """A name that only looks like postmaster is not postmaster."""
    with pytest.raises(AddressError):
        parse_path(text.encode(), forward=True)


@pytest.mark.parametrize("user", ["postmaster", "postmaster-news", "Postmaster"])
def test_postmaster_with_a_domain_is_an_ordinary_mailbox(user: str) -> None:
    """A local part that is or begins with postmaster is left as it came."""
    assert parse_path(f"<{user}@example.com>".encode(), forward=True)[0] == Address(user, "example.com")


def test_tells_which_address_needs_smtputf8() -> None:
    """UTF-8 in local part or domain shows in the address, so that the caller can ask for SMTPUTF8."""
    assert parse_path(b"<a@b>")[0].is_ascii
    assert not parse_path("<ü@b>".encode())[0].is_ascii
    assert not parse_path("<a@ü>".encode())[0].is_ascii


# Text near the grammar, where the faults would be: pieces of paths in any order.
PIECES = st.sampled_from(
    [
        *'<>@aB1.-_,:"\\[]%( \t\n\x00\x80\xa0üİΣ用\u0308\u0345\u212a\u3002',
        *("[1.2.3.4]", "[IPv6:", "::1", "postmaster", "SIZE=5", "a@b", '"a b"', "@a,@b:", "x" * 63, "y" * 129),
    ]
)
USERS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30)
HOSTS = st.one_of(
    st.lists(st.text("aB1-_üÜİΣ用\u0308\u0345", min_size=1, max_size=8), min_size=1, max_size=4).map(".".join),
    st.ip_addresses(v=4).map(lambda ip: f"[{ip}]"),
    st.ip_addresses(v=6).map(lambda ip: f"[ipv6:{ip.exploded}]"),
)
LINES = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(PIECES, max_size=14).map(lambda pieces: "".join(pieces).encode()),
    st.lists(PIECES, max_size=8).map(lambda pieces: f"<{''.join(pieces)}> x=1".encode()),
    st.tuples(st.lists(PIECES, max_size=5), st.lists(PIECES, max_size=5)).map(
        lambda sides: f"<{''.join(sides[0])}@{''.join(sides[1])}>".encode()
    ),
    st.builds(Address, USERS, HOSTS).map(lambda address: f"<{address}>".encode()),
)


def outcome(data: bytes, forward: bool) -> tuple[Address, bytes] | Reply:
    """Return what parse_path() makes of it, or the reply of its error."""
    try:
        return parse_path(data, forward=forward)
    except AddressError as error:
        return error.reply


@settings(deadline=None, max_examples=500)
@given(data=LINES, forward=st.booleans())
def test_every_line_gives_an_address_that_is_within_the_limits_or_an_address_error(data: bytes, forward: bool) -> None:
    """Nothing else is ever raised, and what comes out has no control character and no malformed host."""
    result = outcome(data, forward)
    if isinstance(result, Reply):
        assert result in (BAD_RECIPIENT if forward else BAD_SENDER, PATH_TOO_LONG, LOCAL_PART_TOO_LONG, DOMAIN_TOO_LONG)
        return
    address, parameters = result
    assert len(address.user.encode()) <= 128
    assert len(address.host.encode()) <= 255
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in address.user + address.host)
    assert parameters == parameters.strip(b" ")
    assert data.rstrip(b" ").endswith(parameters)
    assert address.host or address == NULL_PATH or (forward and address == Address("postmaster"))
    assert "@" not in address.host
    assert (address.ip is not None) == address.host.startswith("[")


@settings(deadline=None, max_examples=500)
@given(data=LINES, forward=st.booleans())
@example(data="<a@İ.Σ>".encode(), forward=False)
@example(data=b'<"a\\" \\\\b"@[ipv6:2001:DB8::ffff:1.2.3.4]>', forward=False)
@example(data="<a\u2028b@x>".encode(), forward=True)
def test_what_was_read_is_read_again_from_its_own_text(data: bytes, forward: bool) -> None:
    """The text of an address, in brackets, is the same address: it can be stored and sent on."""
    result = outcome(data, forward)
    if not isinstance(result, Reply):
        address = replace(result[0], route=())  # a route is read and then ignored: it is not written
        assert parse_path(f"<{address}>".encode(), forward=forward) == (address, b"")


@settings(deadline=None)
@given(user=USERS, forward=st.booleans())
def test_any_local_part_without_controls_can_be_written_and_read(user: str, forward: bool) -> None:
    """Quoting gives back every local part, whatever is in it."""
    address = Address(user, "x")
    assert parse_path(f"<{address}>".encode(), forward=forward) == (address, b"")


ATEXT = st.text("abcXYZ019!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=60)
ORDINARY = st.tuples(
    st.lists(ATEXT, min_size=1, max_size=4).map(".".join),
    st.lists(st.sampled_from(["a", "Z09", "-", "_", ".", "x" * 31]), min_size=1, max_size=9).map("".join),
    st.sampled_from(["", " ", " SIZE=5", "  SIZE=5 ", " c@d", " (x)", "x", " x\x7f"]),
).map(lambda parts: f"<{parts[0]}@{parts[1]}>{parts[2]}".encode())


@settings(deadline=None, max_examples=500)
@given(data=ORDINARY | LINES, forward=st.booleans())
def test_the_short_way_and_the_careful_way_agree(data: bytes, forward: bool) -> None:
    """The expression for ordinary paths is only faster: the careful parser reads and refuses the same."""
    try:
        careful: tuple[Address, bytes] | Reply = module._parse_carefully(data, forward)
    except AddressError as error:
        careful = error.reply
    except ValueError:
        careful = BAD_RECIPIENT if forward else BAD_SENDER
    assert outcome(data, forward) == careful


@settings(deadline=None)
@given(text=st.text(st.characters(categories=["L", "M", "N"], exclude_characters="\u212a"), min_size=1, max_size=12))
@example(text="İU\u0308ΑΣ")
def test_composed_and_decomposed_letters_are_one_domain(text: str) -> None:
    """What comes out is lower case and NFC, however the letters were written."""
    result = outcome(f"<a@x{text}>".encode(), False)
    assert result == outcome(f"<a@x{normalize('NFD', text)}>".encode(), False)
    if not isinstance(result, Reply):
        host = result[0].host
        assert host == normalize("NFC", host) == host.lower()
