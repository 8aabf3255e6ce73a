"""The fixture that a program's own tests use: a server that runs, and the envelopes that it has received."""

from __future__ import annotations

import smtplib
import socket

import pytest

from guerrilla.testing.pytest_plugin import RunningServer


def test_what_a_program_sends_is_found_by_its_test(guerrilla_server: RunningServer) -> None:
    assert guerrilla_server.envelopes == []
    with smtplib.SMTP(guerrilla_server.host, guerrilla_server.port) as client:
        client.sendmail(
            "a@anywhere.test", ["b@example.com", "c@anywhere.test"], b"Subject: Hello\r\n\r\nIt is done\r\n"
        )
        client.sendmail("a@anywhere.test", ["b@example.com"], b"Subject: Again\r\n\r\n")
    first, second = guerrilla_server.envelopes
    assert b"It is done" in first.data[:]
    assert [str(recipient) for recipient in first.rcpt_to] == ["b@example.com", "c@anywhere.test"]
    assert second.data == b"Subject: Again\r\n\r\n"


def test_pytest_finds_the_fixture_and_each_test_has_a_server_that_ends_with_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pathlib, smtplib

        def test_one(guerrilla_server):
            with smtplib.SMTP(guerrilla_server.host, guerrilla_server.port) as client:
                client.sendmail("a@b.test", "c@d.test", "You")
            assert len(guerrilla_server.envelopes) == 1
            pathlib.Path("port").write_text(str(guerrilla_server.port))

        def test_two(guerrilla_server):
            assert guerrilla_server.envelopes == []
        """
    )
    pytester.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int((pytester.path / "port").read_text())))
