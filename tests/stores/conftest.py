"""What the tests of the SQL stores share."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger
from tests.stores.sql_databases import EmptyDatabase, Letters, empty_database, letters


@pytest.fixture(params=["mysql", "postgres", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    """Give an empty database of each kind."""
    return empty_database(request.param, request, tmp_path)


@pytest.fixture(params=["mysql", "postgres"])
def networked(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    """Give an empty database of each kind that has a server."""
    return empty_database(request.param, request, tmp_path)


@pytest.fixture
def mysql_database(request: pytest.FixtureRequest, tmp_path: Path) -> EmptyDatabase:
    return empty_database("mysql", request, tmp_path)


@pytest.fixture
def sql_records() -> LogCapture:
    """What was logged."""
    return LogCapture()


@pytest.fixture
def sql_log(sql_records: LogCapture) -> FilteringBoundLogger:
    """A logger that writes to ``sql_records``."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[sql_records], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


@pytest.fixture
def letter() -> Letters:
    """Makes envelopes."""
    return letters()
