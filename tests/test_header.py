"""Any header is read in one pass: nothing raises, and what makes no sense is left out."""

from __future__ import annotations

import mmap
import re
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerrilla import header
from guerrilla.header import decode_encoded_words, parse_header, text_of

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        pytest.param(b"", [], id="an empty message has no header"),
        pytest.param(b"\r\nA: b\r\n\r\n", [], id="a message that begins with the empty line has none"),
        pytest.param(b"A: b", [("A", "b")], id="the header may end with the message"),
        pytest.param(b"A: b\r\n", [("A", "b")], id="the header may end with the message after a line"),
        pytest.param(b"A: b\r\n\r\nC: d\r\n\r\n", [("A", "b")], id="the first empty line ends it"),
        pytest.param(b"A: b\r\n c\r\n\td\r\n\r\n", [("A", "b c\td")], id="unfolding keeps the white space"),
        pytest.param(b"A:\r\n b\r\n\r\n", [("A", "b")], id="a value may begin on the second line"),
        pytest.param(b"A: b\r\n \r\n c\r\nD: e\r\n\r\n", [("A", "b  c"), ("D", "e")], id="a blank line is folding"),
        pytest.param(b" x: y\r\nA: b\r\n\r\n", [("A", "b")], id="a continuation of nothing is left out"),
        pytest.param(b"A: b\r\njunk\r\n more: junk\r\nC: d", [("A", "b"), ("C", "d")], id="so is a malformed line"),
        pytest.param(b"From a@b Mon Jan  1 00:00:00 2024\r\nA: b", [("A", "b")], id="and the From line of an mbox"),
        pytest.param(b": v\r\nA B: v\r\n\xe9: v\r\nA\0: v\r\nC: d", [("C", "d")], id="and a bad name"),
        pytest.param(b"A \t: b\r\n", [("A", "b")], id="blanks before the colon are tolerated"),
        pytest.param(b"A: \t b \t\r\n", [("A", "b")], id="outer blanks go"),
        pytest.param(b"A:  b\r\nC: d \r\nE:f\t\r\nG:\th", [*zip("ACEG", "bdfh", strict=True)], id="on either side"),
        pytest.param(b"A B: v\r\nA\tB: v\r\nC D : v\r\nE: f", [("E", "f")], id="blanks inside of a name are not"),
        pytest.param(b"A: b:c\r\nD:\r\n", [("A", "b:c"), ("D", "")], id="a value may hold colons, or nothing"),
        pytest.param(b"A: 1\r\na: 2\r\n", [("A", "1"), ("a", "2")], id="repeated names stay"),
        pytest.param("A: ü€\r\n".encode(), [("A", "ü€")], id="raw UTF-8 is read"),
        pytest.param(b"A: \xfc\r\nB: \xc3\xbc", [("A", "ü"), ("B", "ü")], id="anything else is ISO 8859-1, by value"),
        pytest.param(b"A: a\0b\x1bc\nd\re\x7ff\tg\r\n", [("A", "abcdef\tg")], id="control characters go, but not tab"),
        pytest.param(b"A: a\x85b\xa0\r\n", [("A", "ab\xa0")], id="also those beyond ASCII; other blanks stay"),
        pytest.param(
            b"__proto__: 1\r\nconstructor: 2\r\nFrom: 3\r\nFrom: 4\r\n",
            [("__proto__", "1"), ("constructor", "2"), ("From", "3"), ("From", "4")],
            id="no name is special",
        ),
    ],
)
def test_header_fields(data: bytes, fields: list[tuple[str, str]]) -> None:
    assert list(parse_header(data)) == fields


def test_reads_a_memory_map() -> None:
    """A message on disk is read as one in memory."""
    with tempfile.TemporaryFile() as file:
        file.write(b"A: b\r\n c\r\n\r\n" + b"x" * 100_000)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            assert list(parse_header(data)) == [("A", "b c")]


def test_limits() -> None:
    """Block, lines, name and value are bounded; what lies beyond a bound is not kept."""
    assert len(parse_header(b"A: b\r\n" * 500_000)) == 1_000
    assert len(parse_header(b"A: " + b"x" * 50_000_000).get("A")) == 100_000
    assert len(parse_header(b"A: x\r\n" + b" x\r\n" * 500_000).get("A")) == 100_000
    assert len(parse_header(b"A" * 998 + b": x\r\n" + b"B" * 65_536 + b": x\r\n")) == 1
    far = b"A: " + b"x" * (1 << 20) + b"\r\nB: c\r\n\r\n"
    assert not parse_header(far).get_all("B")


@given(st.binary())
def test_any_octets_are_read(data: bytes) -> None:
    """No octets make it raise; names are ASCII without blanks, values hold no control characters."""
    for name, value in parse_header(data + b"\r\n" + data):
        assert re.fullmatch(r"[!-9;-~]+", name)
        assert not CONTROL.search(value)
        value.encode()


LINES = [
    b"A: b",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\r",
    b"\n",
    b"\0",
    b"\x1f",
    b"\x7f",
    b"\t",
    b" ",
    b":",
    b"Subject",
    b"A" * 998,
]


@given(st.lists(st.sampled_from(LINES)).map(b"".join))
def test_a_field_is_read_alike_whatever_stands_beside_it(data: bytes) -> None:
    """A header of plain text is read another way, quicker, than one that holds a single octet of another kind."""
    careful = parse_header(b"X: \xff\r\nY: z" + data)
    assert list(careful)[1:] == list(parse_header(b"Y: z" + data))


@pytest.mark.parametrize("octet", range(256))
def test_each_octet_has_its_place(octet: int) -> None:
    """Of a value, control characters go; in a name, only what is visible may stand."""
    fields = list(parse_header(b"A: x%cy\r\nB%cC: z\r\n" % (octet, octet)))
    control = octet != 9 and (octet < 0x20 or 0x7F <= octet < 0xA0)
    expected = [("A", "xy" if control else f"x{chr(octet)}y")]
    if octet == ord(":"):
        expected.append(("B", "C: z"))
    elif 0x20 < octet < 0x7F:
        expected.append((f"B{chr(octet)}C", "z"))
    assert fields == expected


@given(
    st.lists(
        st.tuples(
            st.text("ABCxyz-09_", min_size=1),
            st.lists(st.text("ab:=é€", min_size=1), min_size=1).map(" ".join),
        ),
        max_size=20,
    ),
    st.sampled_from([" ", "\r\n "]),
)
def test_what_was_written_is_read(fields: list[tuple[str, str]], blank: str) -> None:
    """Fields come back as they were written, folded at each blank or not."""
    text = "".join(f"{name}: {value.replace(' ', blank)}\r\n" for name, value in fields)
    assert list(parse_header(text.encode() + b"\r\nBody: x\r\n")) == fields


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        pytest.param("plain = ?", "plain = ?", id="plain text stays"),
        pytest.param("=?utf-8?q?a_b=C3=BC?=", "a bü", id="Q"),
        pytest.param("=?UTF-8?B?w7w=?=", "ü", id="B"),
        pytest.param("=?utf-8?b?w7w?=", "ü", id="B without its padding"),
        pytest.param("a =?utf-8?q?b?= c", "a b c", id="blanks beside plain text stay"),
        pytest.param("=?utf-8?q?a?= \t =?utf-8?q?b?=", "ab", id="blanks between words go"),
        pytest.param("=?utf-8?q?a?=  =?koi8-r?q?=C1?=", "aа", id="also between two character sets"),
        pytest.param("=?utf-8?q?a?==?utf-8?q?b?=", "ab", id="words need no blank between them"),
        pytest.param("=?utf-8?q?a?= x =?utf-8?q?b?=", "a x b", id="words apart stay apart"),
        pytest.param("=?utf-8?q?=C3?= =?utf-8?b?vA==?=", "ü", id="a character cut in two is joined"),
        pytest.param("=?utf-8?q?=E2=82?= =?utf-8?q?=AC?= x", "€ x", id="also before plain text"),
        pytest.param("=?iso-8859-1*en-GB?q?=A3?=", "£", id="a language is read over"),
        pytest.param("=?iso-2022-jp?b?GyRCRnxLXBsoQg==?=", "日本", id="ISO-2022-JP"),
        pytest.param("=?gb2312?b?1tDOxA==?=", "中文", id="GB2312"),
        pytest.param("=?gb2312?b?6UY=?=", "镕", id="GB2312 is in truth its larger set"),
        pytest.param("=?shift_jis?b?k/qWew==?=", "日本", id="Shift JIS"),
        pytest.param("=?big5?b?pKSk5Q==?=", "中文", id="Big5"),
        pytest.param("=?windows-1252?q?=80?=", "€", id="Windows"),
        pytest.param("=?us-ascii?q?a?=", "a", id="ASCII"),
        pytest.param("=?utf-8?q??=", "", id="an empty word"),
        pytest.param("=?utf-8?q?a b?=", "a b", id="a blank inside is tolerated"),
        pytest.param("=?utf-8?q?a=0d=0aBcc:_v@x=00=1b[31m?=", "aBcc: v@x[31m", id="encoded control characters go"),
        pytest.param("=?iso-8859-1?q?a=85b?=", "ab", id="also those beyond ASCII"),
    ],
)
def test_encoded_words(text: str, decoded: str) -> None:
    assert decode_encoded_words(text) == decoded


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("=?nope?q?a?= =?nope?q?b?=", id="unknown character set"),
        pytest.param("=?punycode?q?" + "a" * 10_000 + "?=", id="punycode"),
        pytest.param("=?idna?q?" + "a" * 10_000 + "?=", id="idna"),
        pytest.param("=?utf-7?q?+AGE-?=", id="UTF-7"),
        pytest.param("=?unicode_escape?q?=5Cx41?=", id="unicode_escape"),
        pytest.param("=?zlib?b?eJwDAAAAAAE=?=", id="zlib"),
        pytest.param("=?" + "x" * 100_000 + "?q?a?=", id="a character set of 100 kB"),
        pytest.param("=?utf-8?b?!!!!?=", id="bad base64"),
        pytest.param("=?utf-8?b?AAAAA?=", id="base64 of an impossible length"),
        pytest.param("=?utf-8?q?=FF?=", id="bad UTF-8"),
        pytest.param("=?utf-8?q?=ED=A0=80?=", id="a lone surrogate"),
        pytest.param("=?us-ascii?q?=FC?=", id="octets in ASCII"),
        pytest.param("=?utf-8?q?ü?=", id="raw characters in a word"),
        pytest.param("=?utf-8?x?a?=", id="unknown encoding"),
        pytest.param("=?utf-8?q?a", id="a word without its end"),
        pytest.param("=?" * 10_000, id="beginnings"),
        pytest.param("=?\u212ao\u0131\u017f?q?a?=", id="letters that only look like ASCII when folded"),
    ],
)
def test_what_is_no_encoded_word_stays(text: str) -> None:
    assert decode_encoded_words(text) == text


def test_a_bad_word_leaves_the_others() -> None:
    """A word that does not decode stays raw; its neighbours in another character set are decoded."""
    text = "=?koi8-r?q?=C1?= =?utf-8?q?=FF?= =?nope?q?x?= =?utf-8?q?b?="
    assert decode_encoded_words(text) == "а=?utf-8?q?=FF?= =?nope?q?x?= b"


def test_every_allowed_character_set_is_known() -> None:
    """Python has each character set that a word may name."""
    names = ["utf-8", "utf8", "us-ascii", "ascii", "koi8-r", "koi8-u", "koi8-t", "gb2312", "gbk", "gb18030", "big5"]
    names += ["big5-hkscs", "euc-jp", "euc-kr", "ks_c_5601-1987", "iso-2022-jp", "iso-2022-jp-1", "iso-2022-jp-2"]
    names += ["iso-2022-kr", "shift_jis", "shift-jis", "cp932", "windows-31j", "tis-620"]
    names += [f"iso-8859-{part}" for part in (*range(1, 12), *range(13, 17))] + ["iso8859-1"]
    names += [f"{kind}{page}" for kind in ("windows-", "cp") for page in (*range(1250, 1259), 874)]
    for name in names:
        assert decode_encoded_words(f"=?{name.upper()}?q?a?=") == "a", name


def test_text_is_cut() -> None:
    """A value for people has 998 characters at most, however it was encoded; a missing one is empty."""
    assert text_of(parse_header(b"Subject: " + b"x" * 2000), "subject") == "x" * 998
    words = b" ".join([b"=?utf-8?q?" + b"=F0=9F=90=92" * 4 + b"?="] * 300)
    assert text_of(parse_header(b"Subject: " + words), "Subject") == "\N{MONKEY}" * 998
    assert text_of(parse_header(b"To: x"), "Subject") == ""


@given(st.lists(st.sampled_from(["=?", "utf-8", "?q?", "?b?", "=C3", "w7w=", "?=", " ", "\t", "x", "€", "gb18030"])))
def test_any_text_is_decoded(pieces: list[str]) -> None:
    """No text makes it raise, and what it returns can be written as UTF-8."""
    decoded = decode_encoded_words("".join(pieces))
    assert not CONTROL.search(decoded)
    decoded.encode()


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), st.integers(1, 7))
def test_words_cut_anywhere_are_joined(text: str, size: int) -> None:
    """A text in UTF-8, cut into words of any length, is read back."""
    octets = text.encode()
    pieces = [octets[start : start + size] for start in range(0, len(octets), size)]
    words = ["=?utf-8?Q?" + "".join(f"={octet:02X}" for octet in piece) + "?=" for piece in pieces]
    assert decode_encoded_words("  ".join(words)) == text


def test_the_email_package_is_not_used() -> None:
    """The parser is our own: crafted headers hold the standard library's for seconds."""
    assert "email" not in vars(header)


def test_a_message_that_a_processor_has_made_a_bytearray_of_has_a_header_too() -> None:
    data: Any = bytearray(b"Subject: Hello\r\nTo: you\r\n\r\nText\r\n")
    assert list(parse_header(data)) == [("Subject", "Hello"), ("To", "you")]
