"""What a database says when it does not do what it was asked, and what that means for the next attempt."""

from __future__ import annotations

import sqlite3
from enum import Enum
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

STORE_ERRORS: Final = (SQLAlchemyError, OSError)
"""What a call raises when the database does not do what it was asked, or cannot be reached, or not in time."""


class Verdict(Enum):
    """What an error of the database says about the next attempt."""

    REFUSED = "what it was given does not fit in; anything else may"
    FULL = "there is no room"
    AGAIN = "the transaction is rolled back, or its connection lost: at once, once more"
    AWAY = "it cannot be reached, or takes no work now"
    WRONG = "it has answered, and there is something to mend: a password, a table, a bug"


class FileMovedError(OSError):
    """The path of a SQLite database does not lead to the open file any more."""


# The numbers of MySQL and MariaDB: dev.mysql.com/doc/mysql-errors, mariadb.com/kb/en/mariadb-error-code-reference.
_MYSQL_VERDICTS: Final = {
    Verdict.REFUSED: {1153, 1264, 1265, 1292, 1364, 1366, 1406, 1644, 3819, 4025},
    Verdict.FULL: {1021, 1041, 1114, 1713, 3675},
    Verdict.AGAIN: {1053, 1205, 1213, 1317, 1927, 2006, 2013, 2014, 4031},
    Verdict.AWAY: {1040, 1129, 1158, 1159, 1160, 1161, 1203, 1226, 1290, 1836, 2002, 2003},
}
# Those of PostgreSQL, or their first two characters: postgresql.org/docs/current/errcodes-appendix.html.
_POSTGRES_VERDICTS: Final = {
    Verdict.REFUSED: {"22", "23", "44", "54", "P0001"},
    Verdict.FULL: {"53100"},
    Verdict.AGAIN: {"08", "25P03", "40", "55P03", "57P01", "57P02", "57P05"},
    Verdict.AWAY: {"25006", "53", "57", "58"},
}
_SERVER_ERROR_1030: Final = 1030


def judge(error: BaseException) -> Verdict:
    """Say what an error means for the next attempt."""
    if isinstance(error, IntegrityError | DataError | OverflowError):
        return Verdict.REFUSED
    if not isinstance(error, DBAPIError):
        return Verdict.AWAY if isinstance(error, STORE_ERRORS) else Verdict.WRONG
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        full = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        return Verdict.FULL if full else Verdict.WRONG
    code = mysql_code(error)
    if code is not None:
        if code == _SERVER_ERROR_1030 and "28" in str(cause):  # error 28 of the system: no space left
            return Verdict.FULL
        return next((verdict for verdict, codes in _MYSQL_VERDICTS.items() if code in codes), _lost_or_wrong(error))
    state = getattr(cause, "sqlstate", None) or ""
    for verdict, states in _POSTGRES_VERDICTS.items():
        if state in states or state[:2] in states:
            return verdict
    # Not sent by the server: a value that asyncpg cannot write, or a connection that is gone.
    if not state and "invalid input for query argument" in str(cause):
        return Verdict.REFUSED
    return _lost_or_wrong(error)


def rolled_back(error: BaseException) -> bool:
    """Whether the server itself says that it has undone the transaction: a deadlock, a conflict, a refused value."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return (state or "")[:2] in ("22", "23", "40")


def _lost_or_wrong(error: DBAPIError) -> Verdict:
    return Verdict.AGAIN if error.connection_invalidated or _connection_lost(error.orig) else Verdict.WRONG


def _connection_lost(cause: BaseException | None) -> bool:
    """Whether the driver says by its words that the connection is gone; it has no number for it."""
    words = str(cause).lower()
    return any(each in words for each in ("connection was closed", "connection is closed", "not connected", "network"))


def mysql_code(error: DBAPIError) -> int | None:
    """Return the number of an error of MySQL or its driver; None if it is another database's."""
    arguments = error.orig.args if error.orig is not None else ()
    return arguments[0] if len(arguments) == 2 and isinstance(arguments[0], int) else None


def cause_of(error: BaseException) -> str:
    """Return what the database said, on one line, without the statement that SQLAlchemy adds."""
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = said.args[0] if len(said.args) == 2 and isinstance(said.args[0], int) else None
    words = f"{said.args[1]} ({code})" if code is not None and not isinstance(said, OSError) else str(said)
    return " ".join(words.split()) or type(said).__name__
