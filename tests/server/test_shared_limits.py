"""The limits of connections hold over all processes that share a board, and a process that dies takes none with it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from guerrilla.server.shared_limits import Board, SharedClients
from guerrilla.smtp.replies import TOO_MANY_CLIENTS, TOO_MANY_CLIENTS_FROM_ADDRESS

ONE, OTHER = "192.0.2.1", "198.51.100.7"


@pytest.fixture
def board() -> Board:
    return Board(slots=3, servers=2)


def in_another_process(body: Callable[[], object]) -> None:
    """Run the body in a process that dies at its end, without a word to anybody."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def enter(clients: SharedClients, *addresses: str) -> None:
    for address in addresses:
        assert clients.enter(address) is None


def test_the_limit_holds_over_two_processes(board: Board) -> None:
    in_another_process(lambda: enter(board.clients(1, 0, 3, 0), ONE, OTHER))
    mine = board.clients(0, 0, 3, 0)
    enter(mine, ONE)
    assert mine.enter(OTHER) == TOO_MANY_CLIENTS
    assert len(mine) == 1
    mine.leave(ONE)
    enter(mine, OTHER)


def test_the_limit_per_address_holds_over_two_processes(board: Board) -> None:
    in_another_process(lambda: enter(board.clients(1, 0, 10, 2), ONE))
    mine = board.clients(0, 0, 10, 2)
    enter(mine, ONE, OTHER)
    assert mine.enter(ONE) == TOO_MANY_CLIENTS_FROM_ADDRESS
    enter(mine, OTHER)


def test_what_was_refused_is_not_counted(board: Board) -> None:
    mine, theirs = board.clients(0, 0, 1, 1), board.clients(1, 0, 1, 1)
    enter(mine, ONE)
    for _ in range(3):
        assert theirs.enter(OTHER) == TOO_MANY_CLIENTS
    mine.leave(ONE)
    enter(theirs, OTHER)
    assert (len(mine), len(theirs)) == (0, 1)


def test_each_server_has_its_own_count(board: Board) -> None:
    enter(board.clients(0, 0, 1, 1), ONE)
    enter(board.clients(0, 1, 1, 1), ONE)


def test_the_row_of_a_process_that_was_killed_is_cleared(board: Board) -> None:
    in_another_process(lambda: enter(board.clients(1, 0, 2, 2), ONE, ONE))
    mine = board.clients(0, 0, 2, 2)
    assert mine.enter(ONE) == TOO_MANY_CLIENTS
    board.clear(1)
    enter(mine, ONE, ONE)
    board.clear(2)
    assert mine.enter(ONE) == TOO_MANY_CLIENTS, "another row was cleared too"


def test_the_client_of_a_proxy_is_counted_once_its_address_is_known(board: Board) -> None:
    in_another_process(lambda: enter(board.clients(1, 0, 10, 1), ONE))
    mine = board.clients(0, 0, 10, 1)
    enter(mine, "")
    assert mine.settle(ONE) == TOO_MANY_CLIENTS_FROM_ADDRESS
    assert mine.settle(OTHER) is None
    assert mine.enter(OTHER) == TOO_MANY_CLIENTS_FROM_ADDRESS
    assert len(mine) == 1


def test_without_a_limit_per_address_one_may_have_all_places(board: Board) -> None:
    mine = board.clients(0, 0, 4, 0)
    enter(mine, ONE, ONE, ONE)
    assert mine.settle(ONE) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "ahead"),
    [
        (0, 0, False),
        (2, 0, False),
        (3, 0, True),
        (3, 1, False),
        (8, 6, False),
        (10, 5, True),
        (85, 65, False),
        (86, 65, True),
    ],
)
def test_ahead_is_who_has_an_eighth_and_one_more_than_the_average(mine: int, theirs: int, ahead: bool) -> None:
    board = Board(slots=2, servers=1)
    one, other = (board.clients(slot, 0, 1000, 0) for slot in range(2))
    for clients, number in ((one, mine), (other, theirs)):
        clients.accept(True)
        enter(clients, *[ONE] * number)
    assert one.ahead() == ahead
    assert not other.ahead()


def test_those_that_do_not_accept_are_not_in_the_average(board: Board) -> None:
    mine, theirs, draining = (board.clients(slot, 0, 100, 0) for slot in range(3))
    for clients, number in ((mine, 10), (theirs, 2), (draining, 30)):
        enter(clients, *[ONE] * number)
    mine.accept(True)
    theirs.accept(True)
    draining.accept(True)
    assert not mine.ahead()
    draining.accept(False)
    assert mine.ahead()


def test_who_accepts_alone_or_is_cleared_is_behind_nobody(board: Board) -> None:
    mine, theirs = board.clients(0, 0, 10, 0), board.clients(1, 0, 10, 0)
    mine.accept(True)
    enter(mine, ONE, OTHER, OTHER)
    assert not mine.ahead()
    theirs.accept(True)
    assert mine.ahead()
    board.clear(1)
    assert not mine.ahead(), "a process that was killed accepts no more"


def test_the_end_of_a_server_is_that_of_no_other_and_of_no_count(board: Board) -> None:
    clients = [board.clients(2, server, 10, 0) for server in range(2)]
    for each in clients:
        enter(each, ONE)
    board.end(1)
    assert [each.ends() for each in clients] == [False, True]
    board.begin(1)
    assert [each.ends() for each in clients] == [False, False]
    assert [board.total(server, 0) for server in range(2)] == [1, 1]
