"""The parts of the benchmarks that do not measure: what is made of the numbers, and our own clients and servers."""

from __future__ import annotations

import json
import os
import shutil
import smtplib
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import closing
from pathlib import Path

import pytest
from benchmarks import latency
from benchmarks.__main__ import PANELS, everything
from benchmarks.clients import embedded, idle, load
from benchmarks.embedded import MAIL_SIZE, Batches, opened
from benchmarks.goals import GOALS, verdicts
from benchmarks.load import Job, content, final_lines, steps
from benchmarks.measure import PER_CPU, Case, Extent, Figure, Key, Results, Scenario, Spread, measure, quantile
from benchmarks.picture import WIDTH, draw
from benchmarks.processes import cpu_seconds, family, memory_field, on_one_core, resident, stat_fields
from benchmarks.report import as_json, machine, number, processor, spread, table
from benchmarks.servers import BenchmarkError, Server, aiosmtpd, key_pair, limit, program

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def results(**rates: list[float]) -> Results:
    """Return what a run of the scenario "kept" gives."""
    return Results({Key("kept", subject, PER_CPU): values for subject, values in rates.items()})


# Numbers.


def test_a_figure_counts_by_the_clock_and_by_the_processor() -> None:
    assert Figure(messages=100, seconds=2.0, cpu_seconds=0.5, busiest=0.5).rates == {
        "messages per CPU-second": 200.0,
        "messages per second": 50.0,
    }


def test_what_took_no_measurable_processor_time_is_taken_for_the_grain_of_the_clock() -> None:
    figure = Figure(messages=10, seconds=1.0, cpu_seconds=0.0, busiest=0.0)
    assert (figure.rates[PER_CPU], figure.capacity) == (1000.0, 1000.0)


def test_the_busiest_process_is_what_the_others_wait_for() -> None:
    assert Figure(messages=100, seconds=2.0, cpu_seconds=0.5, busiest=0.4).capacity == pytest.approx(250.0)


def test_the_share_of_the_busiest_process_is_read_from_the_names_of_the_messages(tmp_path: Path) -> None:
    log = tmp_path / "guerrilla.log"
    server = Server(os.getpid(), 25, log)
    names = ["0" * 12 + process * 12 + f"{number:08x}" for number, process in enumerate("abaa")]
    log.write_text("".join(f'{{"event":"message","outcome":"kept","queued_id":"{name}"}}\n' for name in names))
    assert server.busiest_share() == 0.75
    log.write_text("")
    with pytest.raises(BenchmarkError, match="kept nothing"):
        server.busiest_share()


def test_a_ratio_is_made_of_the_two_numbers_of_each_round() -> None:
    found = results(guerrilla=[10.0, 30.0], limit=[20.0, 40.0])
    assert found.ratio(Key("kept", "guerrilla", PER_CPU), Key("kept", "limit", PER_CPU)) == [0.5, 0.75]


def test_there_is_no_ratio_to_what_was_not_measured() -> None:
    assert results(guerrilla=[10.0]).ratio(Key("kept", "guerrilla", PER_CPU), Key("kept", "limit", PER_CPU)) == []


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_a_quantile_is_one_of_the_values(share: float, value: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == value


def test_a_quick_run_does_a_tenth_and_never_nothing() -> None:
    assert [Extent(1, quick=True).count(full) for full in (1000, 5)] == [100, 1]
    assert Extent(1).count(1000) == 1000


def test_a_round_is_cut_into_parts_that_take_turns_unless_it_is_quick() -> None:
    for quick, parts in ((False, 3), (True, 1)):
        found = Results()
        cases = [Case(name, lambda extent: {PER_CPU: float(extent.count(300))}) for name in ("a", "b")]
        measure([Scenario("kept", "", cases, parts=3)], Extent(2, quick=quick), found, lambda _: None)
        assert found.values[Key("kept", "a", PER_CPU)] == [30.0 if quick else 100.0] * 2 * parts


def test_cases_take_turns_and_a_scenario_has_no_more_rounds_than_it_wants() -> None:
    said: list[str] = []
    cases = [Case(name, lambda extent: {PER_CPU: float(extent.rounds)}) for name in ("a", "b")]
    found = Results()
    measure([Scenario("kept", "", cases, most_rounds=2)], Extent(5), found, said.append)
    assert said == [f"kept: {case}, round {number} of 2" for number in (1, 2) for case in "ab"]
    assert found == results(a=[5.0, 5.0], b=[5.0, 5.0])


# Goals.


def test_every_goal_is_about_something_that_is_measured() -> None:
    measured = {(scenario.name, case.subject) for scenario in everything().values() for case in scenario.cases}
    asked: set[tuple[str, str]] = set()

    class Asked(dict[Key, list[float]]):
        def get(self, key: Key, default: object = None) -> list[float]:
            asked.add((key.scenario, key.subject))
            return [1.0]

    for goal in GOALS:
        goal.values(Results(Asked()))
    assert asked
    assert asked <= measured


def test_a_goal_is_judged_by_the_median() -> None:
    judged = {
        verdict.goal.what: verdict.met
        for verdict in verdicts(results(guerrilla=[90.0, 80.0, 10.0], aiosmtpd=[10.0, 10.0, 10.0], limit=[200.0] * 3))
    }
    assert judged == {"guerrilla / aiosmtpd: 2 kB, kept": True, "guerrilla / limit: 2 kB, kept": False}


def test_a_goal_that_is_a_bound_from_above_is_met_below_it() -> None:
    key = Key("idle", "guerrilla", "octets of memory a connection")
    assert [verdict.met for verdict in verdicts(Results({key: [3_999.0]}))] == [True]
    assert [verdict.met for verdict in verdicts(Results({key: [4_001.0]}))] == [False]


def test_a_waiting_time_counts_only_where_the_client_has_kept_pace() -> None:
    def judged(begun: float) -> list[bool]:
        numbers = {latency.MEDIAN: [0.5], latency.RATE: [begun], latency.WANTED: [1000.0]}
        found = Results({Key("latency", "guerrilla", metric): values for metric, values in numbers.items()})
        return [verdict.met for verdict in verdicts(found)]

    assert judged(begun=950.0) == [True]
    assert judged(begun=850.0) == []


# What is written.


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (100.0, "100"), (12.34, "12.3"), (0.256, "0.26"), (-0.5, "-0.50")]
)
def test_a_number_has_three_digits_that_say_something(value: float, text: str) -> None:
    assert number(value) == text


def test_a_spread_is_written_with_its_ends_in_brackets() -> None:
    assert spread(Spread(2.0, 1.0, 3.0)).strip() == "2.00 (1.00–3.00)"


def test_the_table_has_a_line_for_each_number_and_each_goal() -> None:
    found = results(guerrilla=[900.0], limit=[1000.0])
    chosen = [everything()["kept"]]
    lines = table(machine(Extent(1)), chosen, found, list(verdicts(found))).split("\n")
    assert [line.split()[0] for line in lines if "CPU-second" in line] == ["guerrilla", "limit"]
    assert [line.split()[-3:] for line in lines if "at least" in line] == [["met", "0.90", "(0.90–0.90)"]]


def test_the_json_has_the_numbers_of_every_round() -> None:
    found = results(guerrilla=[1.0, 3.0], limit=[2.0, 2.0])
    written = json.loads(as_json(machine(Extent(2)), found, list(verdicts(found))))
    assert [(each["subject"], each["median"], each["values"]) for each in written["results"]] == [
        ("guerrilla", 2.0, [1.0, 3.0]),
        ("limit", 2.0, [2.0, 2.0]),
    ]
    assert [goal["met"] for goal in written["goals"]] == [True]
    assert written["machine"]["rounds"] == 2


def test_the_name_of_the_processor_is_read_from_cpuinfo() -> None:
    assert processor("processor\t: 0\nmodel name\t: Fast & Cheap\nmodel name\t: other\n") == "Fast & Cheap"


def test_the_picture_is_well_formed_and_has_a_bar_for_each_server() -> None:
    drawn = draw(results(guerrilla=[5000.0], limit=[10_000.0]), PANELS, title='a < b & "c"')
    picture = ElementTree.fromstring(drawn)
    bars = [each for each in picture.iter() if (each.get("class") or "").startswith("bar")]
    assert [bar.get("class") for bar in bars] == ["bar ours", "bar"]
    ours, other = (float(bar.get("width", "")) for bar in bars)
    assert other == pytest.approx(2 * ours, abs=0.2)
    assert WIDTH / 2 < other < WIDTH
    assert picture.get("aria-label") == 'a < b & "c"'
    assert "prefers-color-scheme: dark" in drawn


# What proc(5) says.


def test_memory_is_read_in_octets() -> None:
    assert memory_field("Name:\tx VmRSS: 7 kB\nVmRSS:\t    1234 kB\n", "VmRSS") == 1234 * 1024
    with pytest.raises(ValueError, match="no VmHWM"):
        memory_field("VmRSS:\t1 kB\n", "VmHWM")


def test_the_children_of_a_process_belong_to_it() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        assert {os.getpid(), child.pid} <= set(family(os.getpid()))
        assert {os.getpid(), child.pid} <= set(cpu_seconds(os.getpid()))
        child.communicate(b"\n")
    assert child.pid not in family(os.getpid())


def test_a_process_has_used_time_and_memory() -> None:
    assert cpu_seconds(os.getpid())[os.getpid()] > 0
    assert 0 < resident(os.getpid()) <= resident(os.getpid(), peak=True) * 1.01


def test_what_is_started_meanwhile_shares_one_core_and_afterwards_all_are_free_again() -> None:
    def where(pid: int) -> tuple[set[int], int]:
        return os.sched_getaffinity(pid), os.sched_getscheduler(pid)

    before = where(0)
    with on_one_core(), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        cores, policy = where(child.pid)
        assert (len(cores), policy) == (1, os.SCHED_BATCH)
        child.communicate(b"\n")
    assert where(0) == before


def test_a_process_that_has_gone_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert stat_fields(child.pid) == []
    with pytest.raises(FileNotFoundError):
        cpu_seconds(child.pid)


# The clients.


@pytest.mark.parametrize("size", [200, 2048, 102_400])
def test_a_message_has_the_size_that_is_asked_for_and_lines_that_are_short(size: int) -> None:
    message = content(size)
    assert len(message) == size
    assert message.endswith(b"\r\n")
    assert not any(line.startswith(b".") or len(line) > 76 for line in message.split(b"\r\n"))


def test_pipelined_commands_leave_in_one_segment_and_three_answers_are_waited_for() -> None:
    first, second = steps(Job(25, 1, pipelined=True))
    (segment,) = map(bytes, first.octets)
    assert [line[:4] for line in segment.split(b"\r\n")] == [b"MAIL", b"RCPT", b"DATA", b""]
    assert (first.answers, second.answers, second.last) == (3, 1, True)


def test_chunks_say_how_long_they_are_and_which_is_the_last() -> None:
    _, _, *chunks = steps(Job(25, 1, size=2500, chunk=1000))
    assert [chunk.octets[0] for chunk in chunks] == [b"BDAT 1000\r\n", b"BDAT 1000\r\n", b"BDAT 500 LAST\r\n"]
    assert b"".join(chunk.octets[1] for chunk in chunks) == content(2500)
    assert [chunk.last for chunk in chunks] == [False, False, True]


def test_an_answer_is_counted_at_its_last_line() -> None:
    assert final_lines(b"250-one\r\n250-two\r\n250 three\r\n354 go\r\n") == [b"250 three", b"354 go"]


# The programs. Each of these starts one or two processes.


@needs_compiler
def test_the_limit_compiles_without_a_warning_and_takes_a_mail(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "benchmarks/limit.c"
    command = [program("cc", "gcc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "limit"), str(source)]
    subprocess.run(command, check=True, timeout=60)
    with limit() as server, smtplib.SMTP("127.0.0.1", server.port, timeout=10) as client:
        for body in ("", "short\r\n", "x" * 70 + "\r\n.\r\n" * 3, "y" * 1_000_000):
            assert client.sendmail("a@example.org", "b@example.com", f"Subject: x\r\n\r\n{body}") == {}
        assert client.docmd("DATA")[0] == 354
        assert client.docmd(".")[0] == 250
        assert client.docmd("DATA")[0] == 354
        for octets in (b"\r", b"\n.", b"\r", b"\n"):  # its end in pieces
            client.send(octets)
        assert client.getreply()[0] == 250


@needs_compiler
@pytest.mark.parametrize(
    "job",
    [
        {"messages": 20},
        {"messages": 20, "pipelined": True},
        {"messages": 20, "kept": False},
        {"messages": 20, "size": 0, "kept": False},
        {"messages": 20, "rate": 1000.0},
        {"messages": 3, "size": 3_000_000},
    ],
    ids=["kept", "pipelined", "a connection each", "no message", "paced", "large"],
)
def test_our_client_sends_all_that_is_asked_for(job: dict[str, object]) -> None:
    with limit() as server:
        outcome = load(Job(**{"port": server.port, "connections": 4, "seconds": 20.0, **job}))  # type: ignore[arg-type]
    assert outcome.messages == job["messages"]
    assert (0 < outcome.median <= outcome.tail < outcome.seconds) or job.get("size") == 0


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
def test_our_client_and_the_server_that_we_compare_with_speak_tls(kind: str) -> None:
    with aiosmtpd(tls=kind) as server:  # type: ignore[arg-type]
        assert load(Job(server.port, 5, connections=2, tls=kind, seconds=20.0)).messages == 5  # type: ignore[arg-type]


def test_the_server_that_we_compare_with_writes_its_log_only_where_it_is_told_to() -> None:
    def logs(pid: int) -> list[str]:
        files = [each.resolve() for each in Path(f"/proc/{pid}/fd").iterdir()]
        return [each.read_text() for each in files if each.name == "aiosmtpd.log"]

    with aiosmtpd(log=True) as server:
        load(Job(server.port, 1, connections=1, seconds=20.0))
        (written,) = logs(server.pid)
    assert ">> b'DATA'" in written
    with aiosmtpd() as server:
        assert logs(server.pid) == []


def test_our_client_says_what_a_server_has_refused() -> None:
    with aiosmtpd() as server, pytest.raises(BenchmarkError, match="500"):
        load(Job(server.port, 1, connections=1, chunk=100, seconds=20.0))  # it knows no BDAT


@needs_compiler
def test_idle_connections_are_held_as_long_as_the_block_lasts() -> None:
    def sockets(pid: int) -> int:
        return sum(os.readlink(each).startswith("socket:") for each in Path(f"/proc/{pid}/fd").iterdir())

    with limit() as server:
        before = sockets(server.pid)
        with idle(server, 10):
            assert sockets(server.pid) == before + 10


@needs_compiler
def test_a_server_that_is_not_there_is_told() -> None:
    with limit() as server:
        port = server.port
    with pytest.raises(BenchmarkError, match="no connection"):
        load(Job(port, 1, connections=1, seconds=20.0))


def test_sqlite_alone_commits_all_rows_each_with_a_name_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path / "alone.db") as connection:
        batches = Batches(connection, 20)
        batches.write()
        batches.write()
        with closing(sqlite3.connect(tmp_path / "alone.db")) as other:
            rows = other.execute("SELECT COUNT(DISTINCT hash), MIN(LENGTH(mail)) FROM new_mail").fetchone()
    assert rows == (40, MAIL_SIZE)


def test_what_sqlite_alone_has_written_is_counted_in_whole_batches() -> None:
    assert embedded(50, 20).messages == 60


def test_a_program_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(BenchmarkError, match=r"no-such-program is not here; Debian has it in some-package"):
        program("no-such-program", "some-package")


def test_keys_are_made_for_both_servers(tmp_path: Path) -> None:
    pair = key_pair(tmp_path)
    assert b"PRIVATE KEY" in pair.key.read_bytes()
    assert b"CERTIFICATE" in pair.certificate.read_bytes()
