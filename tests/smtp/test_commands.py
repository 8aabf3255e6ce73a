"""The arguments of the commands: what is read, and which reply refuses what is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla.envelope import NULL_PATH, Address
from guerrilla.smtp.commands import (
    CommandError,
    Mail,
    is_foreign,
    parse_bdat,
    parse_helo,
    parse_mail,
    parse_rcpt,
)

SENDER = Address("a", "b.test")

PARSERS: dict[str, Callable[[bytes], object]] = {
    "HELO": parse_helo,
    "MAIL": parse_mail,
    "RCPT": lambda argument: parse_rcpt(argument, smtputf8=False),
    "BDAT": parse_bdat,
}


def refused(argument: bytes | str, command: str = "MAIL") -> str:
    """Return code and enhanced code of the reply that refuses the argument."""
    with pytest.raises(CommandError) as caught:
        PARSERS[command](argument.encode() if isinstance(argument, str) else argument)
    assert str(caught.value) == str(caught.value.reply)
    return f"{caught.value.reply.code} {caught.value.reply.enhanced}"


@pytest.mark.parametrize(
    "name",
    [
        "client.test",
        "[192.0.2.1]",
        "[IPv6:::1]",
        "my_printer",
        "localhost",
        "-",
        "$(id)",
        "{0.__class__}",
        "!~",
        "x" * 255,
    ],
)
def test_any_printable_word_names_a_client(name: str) -> None:
    assert parse_helo(name.encode()) == name


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a\x07b", b"\x1b[2J", b"a\0", b"a\t", b"a\x7f", b"\xff\xfe", "ü".encode(), b"x" * 256]
)
def test_what_is_no_printable_word_does_not(name: bytes) -> None:
    assert refused(name, "HELO") == "501 5.5.2"


@pytest.mark.parametrize(
    ("argument", "mail"),
    [
        ("FROM:<a@b.test>", (SENDER, 0, "7BIT", False)),
        ("from: <a@b.test>", (SENDER, 0, "7BIT", False)),
        ("From:a@b.test", (SENDER, 0, "7BIT", False)),
        ("FROM:<>", (NULL_PATH, 0, "7BIT", False)),
        ("FROM:<> SIZE=0", (NULL_PATH, 0, "7BIT", False)),
        ("FROM:<a@b.test> SIZE=5", (SENDER, 5, "7BIT", False)),
        ("FROM:<a@b.test> size=0005", (SENDER, 5, "7BIT", False)),
        ("FROM:<a@b.test> SIZE=99999999999999999999", (SENDER, 10**20 - 1, "7BIT", False)),
        ("FROM:<a@b.test> BODY=7BIT", (SENDER, 0, "7BIT", False)),
        ("FROM:<a@b.test> BODY=8BITMIME", (SENDER, 0, "8BITMIME", False)),
        ("FROM:<a@b.test> body=BinaryMIME", (SENDER, 0, "BINARYMIME", False)),
        ("FROM:<a@b.test> SMTPUTF8", (SENDER, 0, "7BIT", True)),
        ("FROM:<ü@b.test> SMTPUTF8", (Address("ü", "b.test"), 0, "7BIT", True)),
        ("FROM:<a@b.test> SIZE=7 BODY=8BITMIME", (SENDER, 7, "8BITMIME", False)),
        ("FROM:<a@b.test> BODY=7BIT  SIZE=0007", (SENDER, 7, "7BIT", False)),
        ("FROM:<a@b.test>  SMTPUTF8   SIZE=1 BODY=8BITMIME  ", (SENDER, 1, "8BITMIME", True)),
    ],
)
def test_mail_has_a_sender_and_the_parameters_of_our_extensions(argument: str, mail: Mail) -> None:
    assert parse_mail(argument.encode()) == mail


@pytest.mark.parametrize(
    ("argument", "codes"),
    [
        ("", "501 5.5.2"),
        ("<a@b.test>", "501 5.5.2"),
        ("TO:<a@b.test>", "501 5.5.2"),
        ("FROM <a@b.test>", "501 5.5.2"),
        ("FROM", "501 5.5.2"),
        ("FROM:", "501 5.1.7"),
        ("FROM:<a>", "501 5.1.7"),
        ("FROM:<a@b.test", "501 5.1.7"),
        ("FROM:<a\0b@b.test>", "501 5.1.7"),
        (b"FROM:<a\xff@b.test> SMTPUTF8", "501 5.1.7"),
        (b"FROM:<a\xc0\xae@b.test> SMTPUTF8", "501 5.1.7"),
        (b"FROM:<a\xed\xa0\x80@b.test> SMTPUTF8", "501 5.1.7"),
        ("FROM:<;sleep 5;@b.test>", "501 5.1.7"),
        ("FROM:<ü@b.test>", "553 5.6.7"),
        ("FROM:<a@ü.test>", "553 5.6.7"),
        ("FROM:<ü@b.test> SIZE=1", "553 5.6.7"),
        ("FROM:<a@b.test> SIZE", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE= 5", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=-1", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=+5", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=1_0", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=0x10", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=٣", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=" + "9" * 21, "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=" + "9" * 5000, "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=1 SIZE=1", "501 5.5.4"),
        ("FROM:<a@b.test> SIZE=1 size=2", "501 5.5.4"),
        ("FROM:<a@b.test> ſIZE=1", "501 5.5.4"),
        ("FROM:<a@b.test> BODY=7BIT BODY=8BITMIME", "501 5.5.4"),
        ("FROM:<a@b.test> BODY=7BIT SIZE=1 BODY=7BIT", "501 5.5.4"),
        ("FROM:<a@b.test> BODY", "501 5.5.4"),
        ("FROM:<a@b.test> BODY=BOGUS", "501 5.5.4"),
        ("FROM:<a@b.test> BODY=8BITMIME=", "501 5.5.4"),
        ("FROM:<a@b.test> SMTPUTF8=1", "501 5.5.4"),
        ("FROM:<a@b.test> -X", "501 5.5.4"),
        ("FROM:<a@b.test> X=\x7f", "501 5.1.7"),
        ("FROM:<a@b.test> FOO=BAR", "555 5.5.4"),
        ("FROM:<a@b.test> FOO", "555 5.5.4"),
        ("FROM:<a@b.test> RET=HDRS ENVID=a+0Ab", "555 5.5.4"),
        ("FROM:<a@b.test> AUTH=<>", "555 5.5.4"),
        ("FROM:<a@b.test> " + " ".join(f"X{i}=1" for i in range(200)), "555 5.5.4"),
    ],
)
def test_mail_that_is_wrong_is_refused_with_the_code_for_it(argument: str | bytes, codes: str) -> None:
    assert refused(argument) == codes


@pytest.mark.parametrize("user", ["`id`", "${run{x}}", "%s%n", "{0.__class__}", "|cmd", "-rf", "'--", "*"])
def test_what_a_shell_or_a_template_would_read_is_plain_text(user: str) -> None:
    assert parse_mail(f"FROM:<{user}@b.test>".encode())[0] == Address(user, "b.test")
    assert parse_rcpt(f"TO:<{user}@b.test>".encode(), smtputf8=False) == Address(user, "b.test")


@pytest.mark.parametrize("argument", ["TO:<a@b.test>", "to: <a@b.test>", "To:a@b.test", "TO:<@x,@y:a@b.test>"])
def test_rcpt_has_a_recipient(argument: str) -> None:
    assert str(parse_rcpt(argument.encode(), smtputf8=False)) == "a@b.test"


def test_a_recipient_beyond_ascii_needs_smtputf8() -> None:
    assert parse_rcpt("TO:<ü@b.test>".encode(), smtputf8=True) == Address("ü", "b.test")
    assert refused("TO:<ü@b.test>", "RCPT") == "553 5.6.7"
    assert refused("TO:<a@ü.test>", "RCPT") == "553 5.6.7"


@pytest.mark.parametrize(
    ("argument", "codes"),
    [
        ("", "501 5.5.2"),
        ("FROM:<a@b.test>", "501 5.5.2"),
        ("TO", "501 5.5.2"),
        ("TO:", "501 5.1.3"),
        ("TO:<>", "501 5.1.3"),
        ("TO:<a>", "501 5.1.3"),
        ('TO:<"a@b.test>', "501 5.1.3"),
        ('TO:<"' + '\\"' * 900 + "@b.test>", "501 5.1.3"),
        ("TO:<" + "@a," * 600 + "@b:c@d>", "501 5.1.0"),
        ("TO:<a(b(c))@d>", "501 5.1.3"),
        ("TO:<a@b.test\\", "501 5.1.3"),
        ("TO:<a@b.test> NOTIFY=NEVER", "555 5.5.4"),
        ("TO:<a@b.test> ORCPT=rfc822;a+0Ab", "555 5.5.4"),
        ("TO:<a@b.test> =", "501 5.5.4"),
        ("TO:<a@b.test> X==", "501 5.5.4"),
    ],
)
def test_rcpt_that_is_wrong_is_refused_with_the_code_for_it(argument: str, codes: str) -> None:
    assert refused(argument, "RCPT") == codes


@pytest.mark.parametrize(
    ("argument", "chunk"),
    [
        (b"0", (0, False)),
        (b"5", (5, False)),
        (b"5 LAST", (5, True)),
        (b"005  last ", (5, True)),
        (b"9" * 15, (10**15 - 1, False)),
    ],
)
def test_bdat_has_a_size_and_perhaps_is_the_last(argument: bytes, chunk: tuple[int, bool]) -> None:
    assert parse_bdat(argument) == chunk


@pytest.mark.parametrize(
    "argument",
    [b"", b"-1", b"+5", b"1_0", b"0x10", b"5LAST", b"5\tLAST", b"5 LAST x", b"LAST", "٣".encode(), b"9" * 16],
)
def test_bdat_without_a_plain_size_is_refused(argument: bytes) -> None:
    assert refused(argument, "BDAT") == "501 5.5.2"


@pytest.mark.parametrize(
    ("verb", "foreign"), [(b"GET", True), (b"TRACE", True), (b"HOST:", True), (b"MAIL", False), (b"", False)]
)
def test_http_and_header_fields_are_told_from_commands(verb: bytes, foreign: bool) -> None:
    assert is_foreign(verb) is foreign


@given(st.binary(max_size=80), st.sampled_from(sorted(PARSERS)))
def test_no_argument_does_worse_than_a_command_error(octets: bytes, command: str) -> None:
    for head in (b"", b"FROM:", b"FROM:<a@b> ", b"TO:", b"TO:<a@b> "):
        with contextlib.suppress(CommandError):
            PARSERS[command](head + octets)
