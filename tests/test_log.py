"""The log: what a record looks like, what strangers cannot put into it, and that it never stands in the way."""

from __future__ import annotations

import errno
import http
import json
import logging
import os
import pty
import re
import stat
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from guerrilla.log import Log, as_logger
from guerrilla.log_records import MAX_TEXT, Output, Records, json_line, log_message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guerrilla.log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    log = Log(str(path), "debug")
    yield log
    log.close()


def records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


def console(path: Path, **fields: Any) -> str:
    """Return what the console form makes of the fields, after time, level and event."""
    log = Log(str(path), "info", "console")
    log.logger.info("event", **fields)
    log.close()
    start, _, rest = path.read_text().partition("event")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info     ", start)
    return rest


def test_a_record_is_one_line_of_json_with_level_time_and_event_first(log: Log, path: Path) -> None:
    log.logger.bind(client="192.0.2.1").info("message kept", size=2048, ms=1.5, tls=None, esmtp=True)
    (record,) = records(path)
    assert list(record) == ["level", "timestamp", "event", "client", "size", "ms", "tls", "esmtp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("timestamp"))
    assert record == {
        "level": "info",
        "event": "message kept",
        "client": "192.0.2.1",
        "size": 2048,
        "ms": 1.5,
        "tls": None,
        "esmtp": True,
    }


def test_the_time_is_the_record_s_own(log: Log, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [
        1_700_000_000_000_000_000,
        1_700_000_000_999_999_999,
        1_700_000_001_004_000_000,
        1_699_999_999_000_000_000,
    ]
    monkeypatch.setattr("guerrilla.log_records.time.time_ns", iter(moments).__next__)
    for _ in moments:
        log.logger.info("a")
    assert [record["timestamp"] for record in records(path)] == [
        "2023-11-14T22:13:20.000Z",
        "2023-11-14T22:13:20.999Z",
        "2023-11-14T22:13:21.004Z",
        "2023-11-14T22:13:19.000Z",
    ]


def test_who_writes_while_another_thread_turns_to_a_new_second_has_a_time_of_its_own(
    log: Log, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread is one that the interpreter lets run just then: it is in the middle of strftime."""
    begin = time.strftime
    inner = [True]

    def interrupted(form: str, moment: time.struct_time) -> str:
        if inner:
            inner.clear()
            log.logger.info("inner")
        return begin(form, moment)

    monkeypatch.setattr("guerrilla.log_records.time.time_ns", lambda: 1_700_000_000_005_000_000)
    monkeypatch.setattr("guerrilla.log_records.time.strftime", interrupted)
    log.logger.info("outer")
    assert [record["timestamp"] for record in records(path)] == ["2023-11-14T22:13:20.005Z"] * 2


def test_a_text_or_number_of_another_class_is_written_as_what_it_is(log: Log, path: Path) -> None:
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "another\n"

    log.logger.info("a %s", "b", name=Name("x\ny"), number=http.HTTPStatus.OK, yes=True)
    (record,) = records(path)
    assert (record["event"], record["name"], record["number"], record["yes"]) == ("a b", "x\\x0ay", 200, True)


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**50])
def test_a_number_that_is_larger_than_machines_have_is_written_all_the_same(log: Log, path: Path, number: int) -> None:
    log.logger.info("a", number=number, deep=[{"ä": number}])
    (record,) = records(path)
    assert (record["number"], record["deep"]) == (number, [{"ä": number}])


def test_many_fields_are_written_under_their_own_names(log: Log, path: Path) -> None:
    fields = {f"n{number}\n": number for number in range(600)}
    for _ in range(2):
        log.logger.info("a", **fields, level="mine")
    expected = {f"n{number}\\x0a": number for number in range(600)} | {"level": "info", "level_": "mine"}
    for record in records(path):
        assert {name: value for name, value in record.items() if name not in ("timestamp", "event")} == expected


def test_what_is_below_the_level_is_not_written(path: Path) -> None:
    log = Log(str(path), "warning")
    log.logger.info("a")
    log.logger.warning("b")
    log.logger.critical("c")
    log.close()
    assert [record["event"] for record in records(path)] == ["b", "c"]


@pytest.mark.parametrize("level", ["fatal", "panic"])
def test_the_go_program_s_highest_levels_are_critical(path: Path, level: str) -> None:
    log = Log(str(path), level)
    log.logger.error("a")
    log.logger.fatal("b")
    log.close()
    assert [(record["level"], record["event"]) for record in records(path)] == [("critical", "b")]


def test_a_level_that_there_is_not_is_refused(path: Path) -> None:
    with pytest.raises(KeyError):
        Log(str(path), "loud")
    assert not path.exists()


@given(st.dictionaries(st.text(min_size=1), st.text() | st.binary() | st.lists(st.text()), max_size=4), st.text())
def test_no_text_whatever_makes_a_second_line_or_an_unprintable_character(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], event: str
) -> None:
    for form in ("json", "console"):
        path = tmp_path_factory.mktemp("log") / "log"
        log = Log(str(path), "info", form)
        log.logger.bind(**{name + "!": value for name, value in fields.items()}).info(event)
        log.close()
        text = path.read_bytes().decode()
        assert text.endswith("\n")
        assert text[:-1].isprintable()


class Word(str):
    """A text of another class, as the text of an address may be."""

    def __format__(self, _: str) -> str:
        raise ValueError


def ordinary(**changes: Any) -> dict[str, Any]:
    """Return the fields of a message as most are."""
    fields: dict[str, Any] = {"outcome": "kept", "queued_id": "0f", "client": "192.0.2.1", "sender": "a@example.com"}
    return {**fields, "recipients": ["b@example.com"], "size": 2, "reply": "250 2.0.0 OK", "ms": 0.5, **changes}


PIECES = st.text(st.sampled_from('ab@"\\\n\x7f\x80é\ud800 '), max_size=4) | st.sampled_from(
    ["a@example.com", "x" * (MAX_TEXT - 1), "x" * MAX_TEXT, "x" * (MAX_TEXT + 1)]
)
NUMBERS = st.sampled_from([0.0, 0.01, 0.07, 0.1, 1.0, 12.34, 99999.99, 1e8, 1e9, 1e16, 1e300, -1.0, float("nan")])


@given(
    outcome=st.sampled_from(["kept", "refused"]),
    queued_id=PIECES | st.sampled_from([None, 7, uuid.UUID(int=7)]),
    client=PIECES | st.none(),
    sender=PIECES,
    recipients=st.lists(PIECES, max_size=3),
    size=st.integers(0, 2**40),
    reply=PIECES,
    ms=NUMBERS | st.floats(0, 1e9) | st.integers(0, 10**11).map(lambda hundredths: hundredths / 100),
)
@example(**ordinary())
@example(**ordinary(ms=0.0))
@example(**ordinary(ms=1e-4))
@example(**ordinary(ms=1e-5))
@example(**ordinary(recipients=["b@example.com", "c@example.com"], size=0, ms=0.07))
@example(**ordinary(recipients=[Word("b@example.com")]))
@pytest.mark.parametrize("bound", [{}, {"server": "192.0.2.1:25"}])
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_the_line_of_a_message_is_the_one_that_the_method_writes(
    tmp_path_factory: pytest.TempPathFactory, level: str, form: str, bound: dict[str, Any], **fields: Any
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = Log(str(path), level, form)  # type: ignore[arg-type]
    logger = log.logger.bind(**bound)
    logger.info("message", **fields)
    log_message(logger, **fields)
    log.close()
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]{12}Z", "", path.read_text("utf-8"))
    assert text == text[: len(text) // 2] * 2
    assert bool(text) is (level != "warning")


def test_the_line_of_an_ordinary_message_takes_the_short_way(path: Path) -> None:
    output = Output(str(path))
    records = Records(json_line, output)
    assert records.write_message(**ordinary())
    others: list[dict[str, Any]] = [
        *({"sender": f"a{other}b"} for other in '"\\\x00\x1f\x7fé'),
        {"sender": Word("a")},
        {"reply": Word("250")},
        {"client": None},
        {"recipients": []},
        {"reply": "x" * MAX_TEXT},
        {"ms": 1e9},
        {"ms": 1e-5},
    ]
    for changes in others:
        assert not records.write_message(**ordinary(**changes))
    assert not Records(lambda record: b"", output).write_message(**ordinary())
    output.close()
    line = json.loads(path.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[0-9:.]{12}Z", line.pop("timestamp"))
    assert line == {"level": "info", "event": "message", **ordinary()}


def test_a_message_is_told_to_the_loggers_that_programs_give(caplog: pytest.LogCaptureFixture) -> None:
    capture = LogCapture()
    log_message(structlog.wrap_logger(None, processors=[capture]), **ordinary())
    log_message(structlog.wrap_logger(None, processors=[capture]).bind(server="a"), **ordinary(size=3))
    assert capture.entries == [
        {"event": "message", "log_level": "info", **ordinary()},
        {"event": "message", "log_level": "info", "server": "a", **ordinary(size=3)},
    ]
    caplog.set_level(logging.INFO)
    log_message(as_logger(logging.getLogger("given")), **ordinary(sender="a\nb"))
    [record] = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().startswith("message outcome=kept queued_id=0f client=192.0.2.1 sender=a\\x0ab ")


def test_a_message_told_to_a_log_that_is_off_is_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log_message(Log("off", "debug").logger, **ordinary())
    assert capfd.readouterr() == ("", "")


def test_what_is_not_printable_is_written_as_its_number(log: Log, path: Path) -> None:
    log.logger.info(
        "a\r\nb",
        escape="\x1b]0;x\x07",
        bidi="\u202eabc",
        tag="\U000e0041",
        surrogate="\ud800",
        raw=b"\xff\n ok",
        nested=("a\n", [{"k\n": b"\0"}]),
        accents="é 漢",
        **{"na\nme": 1},
    )
    (record,) = records(path)
    assert {key: record[key] for key in list(record)[2:]} == {
        "event": "a\\x0d\\x0ab",
        "escape": "\\x1b]0;x\\x07",
        "bidi": "\\u202eabc",
        "tag": "\\U000e0041",
        "surrogate": "\\ud800",
        "raw": "\\xff\\x0a ok",
        "nested": ["a\\x0a", [{"k\\x0a": "\\x00"}]],
        "accents": "é 漢",
        "na\\x0ame": 1,
    }


def test_a_long_text_is_cut(log: Log, path: Path) -> None:
    log.logger.info("e" * 1000, fits="x" * MAX_TEXT, long="x" * (MAX_TEXT + 1), junk="\n" * MAX_TEXT, raw=b"x" * 10**6)
    (record,) = records(path)
    assert record["fits"] == "x" * MAX_TEXT
    for key in ("event", "long", "junk", "raw"):
        assert len(record[key]) == MAX_TEXT
        assert record[key].endswith("…")


def test_a_value_that_json_does_not_know_is_written_as_text(log: Log, path: Path) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    log.logger.info("a", path=Path("/a\nb"), nan=float("nan"), some={1}, deep=deep)
    log.logger.info("b", map={"é": float("inf"), 3: 1 + 2j})
    first = records(path)[0]
    assert (first["path"], first["nan"], first["some"], first["deep"]) == ("/a\\x0ab", "nan", [1], [[[["…"]]]])
    assert records(path)[1]["map"] == {"é": "inf", "3": "(1+2j)"}


@pytest.mark.parametrize("name", ["level", "timestamp", "event", "exception"])
def test_a_field_cannot_take_the_place_of_what_every_record_has(path: Path, name: str) -> None:
    output = Output(str(path))
    Records(json_line, output).write("info", "a", {name: "mine"})
    output.close()
    (record,) = records(path)
    assert (record["level"], record["event"], record[name + "_"]) == ("info", "a", "mine")
    assert len(record) == 4


def failing(logger: FilteringBoundLogger) -> None:
    try:
        raise ValueError("evil\n2026-01-01T00:00:00.000Z info     FAKE\x1b[2J")
    except ValueError:
        logger.exception("a processor failed")


def test_an_exception_is_a_field_of_one_line_in_json(log: Log, path: Path) -> None:
    failing(log.logger)
    log.logger.error("b", exc_info=False)
    first, second = records(path)
    assert first["level"] == "error"
    lines = first["exception"].split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "2026-01-01T00:00:00.000Z info     FAKE\\x1b[2J"
    assert "exc_info" not in second


def test_no_line_of_a_traceback_on_the_console_can_pass_for_a_record(path: Path) -> None:
    log = Log(str(path), "info", "console")
    failing(log.logger)
    log.close()
    first, *rest = path.read_text().split("\n")[:-1]
    assert first.endswith("error    a processor failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_the_end_of_a_long_traceback_is_kept(log: Log, path: Path) -> None:
    log.logger.error("a", exc_info=ValueError("x\n" * 20000 + "the cause"))
    assert records(path)[0]["exception"].endswith("\nthe cause")
    assert path.stat().st_size < 40000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ("x outcome=kept", '"x outcome=kept"'),
        ('a"b', '"a\\"b"'),
        ('" x="\\', '"\\" x=\\"\\\\"'),
        (5, "5"),
        (["a", "b"], '["a","b"]'),
        (None, "null"),
    ],
)
def test_on_the_console_no_value_can_look_like_another_field(path: Path, value: object, text: str) -> None:
    assert console(path, key=value, last=1) == f" key={text} last=1\n"


def test_a_file_is_appended_to_and_not_for_everybody_s_eyes(path: Path) -> None:
    umask = os.umask(0)
    try:
        for event in ("a", "b"):
            log = Log(str(path))
            log.logger.info(event)
            log.close()
    finally:
        os.umask(umask)
    assert [record["event"] for record in records(path)] == ["a", "b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_after_a_rename_reopen_makes_a_new_file(log: Log, path: Path) -> None:
    log.logger.info("a")
    old = path.rename(path.with_suffix(".1"))
    log.logger.info("b")
    log.reopen()
    log.logger.info("c")
    assert [record["event"] for record in records(old)] == ["a", "b"]
    assert [record["event"] for record in records(path)] == ["c"]


def test_when_it_cannot_be_reopened_the_old_file_stays_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = Log(str(folder / "a"))
    folder.rename(tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.logger.info("a")
    log.close()
    assert len(records(tmp_path / "old" / "a")) == 1


def test_a_closed_log_drops_and_counts_and_can_be_opened_again(log: Log, path: Path) -> None:
    log.close()
    log.close()
    log.logger.info("a")
    assert log.dropped == 1
    log.reopen()
    log.logger.info("b")
    assert [record["event"] for record in records(path)] == ["b"]


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        Log(str(tmp_path))


def test_a_full_disk_never_raises_and_each_record_is_counted() -> None:
    log = Log("/dev/full")
    log.logger.info("a")
    log.logger.error("b")
    log.close()
    assert log.dropped == 2


def test_a_named_pipe_that_nobody_reads_is_an_error_and_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        Log(str(tmp_path / "pipe"))


def test_what_a_slow_reader_of_a_named_pipe_has_no_room_for_is_dropped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = Log(str(tmp_path / "pipe"))
    log.logger.info("first")
    while not log.dropped:
        log.logger.info("a", text="x" * MAX_TEXT)
    assert json.loads(os.read(reading, 1 << 20).split(b"\n")[0])["event"] == "first"
    log.close()
    os.close(reading)


def test_after_half_a_record_the_next_one_starts_on_a_line_of_its_own(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    log = Log(f"/proc/self/fd/{writing}")
    while not log.dropped:
        log.logger.info("a", **{f"k{n}": "x" * 200 for n in range(40)})
    text = os.read(reading, 1 << 20)
    log.logger.info("b")
    text += os.read(reading, 1 << 20)
    log.close()
    os.close(reading)
    os.close(writing)
    assert json.loads(text.split(b"\n")[-2])["event"] == "b"


def test_a_pipe_that_nobody_reads_any_more_never_raises(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = Log(str(pipe))
    os.close(reading)
    log.logger.info("a")
    log.close()
    assert log.dropped == 1


def test_a_value_that_cannot_be_written_never_fails_who_logs_it(log: Log, path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise OSError(errno.EIO, "no")

    log.logger.info("a", value=Broken())
    log.logger.info("b")
    assert log.dropped == 1
    assert [record["event"] for record in records(path)] == ["b"]


def test_off_writes_nothing_and_counts_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("off", "debug")
    log.logger.critical("a")
    log.reopen()
    log.close()
    assert log.dropped == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_the_standard_streams_have_the_console_form_unless_told_otherwise(
    capfd: pytest.CaptureFixture[str], stream: str
) -> None:
    for form in ("auto", "json"):
        log = Log(stream, "info", form)
        log.logger.info("hello")
        log.reopen()
        log.close()
    out, err = capfd.readouterr()
    first, second = (out or err).splitlines()
    assert first.endswith("info     hello")
    assert json.loads(second)["event"] == "hello"
    assert bool(out) == (stream == "stdout")


def test_a_stream_that_was_closed_before_the_start_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    log = Log("stderr")
    log.logger.info("a")
    assert log.dropped == 1


def test_a_terminal_has_colours_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    monkeypatch.delenv("NO_COLOR", raising=False)
    for _ in range(2):
        log = Log(os.ttyname(slave), "info", "console")
        log.logger.error("a")
        log.close()
        monkeypatch.setenv("NO_COLOR", "1")
    text = b""
    while text.count(b"\n") < 2:
        text += os.read(master, 4096)
    coloured, plain = text.splitlines()
    os.close(master)
    os.close(slave)
    assert b"\x1b[31merror   \x1b[0m a" in coloured
    assert b"\x1b" not in plain


def test_two_logs_do_not_know_of_each_other(tmp_path: Path) -> None:
    first, second = Log(str(tmp_path / "1"), "debug"), Log(str(tmp_path / "2"), "error")
    first.logger.debug("a")
    second.logger.debug("b")
    first.close()
    second.close()
    assert len(records(tmp_path / "1")) == 1
    assert records(tmp_path / "2") == []
