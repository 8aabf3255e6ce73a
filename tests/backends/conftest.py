"""What the tests of the backends share: a log that can be read, gateways that are shut down, modules on the path."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from guerrilla.backends.gateway import Gateway
from guerrilla.backends.registry import Registry


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """Fails a test that hangs: most that can break here would show in that way."""

    def fail(number: int, frame: FrameType | None) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 30, 1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def records() -> LogCapture:
    """What was logged."""
    return LogCapture()


@pytest.fixture
def log(records: LogCapture) -> FilteringBoundLogger:
    """A logger that writes to ``records``."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


@pytest.fixture
def built(log: FilteringBoundLogger) -> Callable[..., Gateway]:
    """Builds a gateway: ``built("A|B", {"save_workers_size": 1}, A=factory, B=factory)``."""

    def build(save_process: str, keys: dict[str, Any] | None = None, **factories: Any) -> Gateway:
        registry = Registry()
        for name, factory in factories.items():
            registry.add(name, factory)
        return Gateway(registry.build({"save_process": save_process} | (keys or {})), log)

    return build


@pytest.fixture
async def running(built: Callable[..., Gateway]) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Builds a gateway and starts it; it is shut down after the test."""
    gateways: list[Gateway] = []

    async def start(save_process: str, keys: dict[str, Any] | None = None, **factories: Any) -> Gateway:
        gateway = built(save_process, keys, **factories)
        gateways.append(gateway)
        await gateway.initialize()
        await gateway.start()
        return gateway

    yield start
    for gateway in gateways:
        await gateway.shutdown()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module that can be imported: ``module("my_foo", source)``; it is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(name: str, source: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def package(tmp_path: Path, module: Callable[[str, str], None]) -> Callable[[dict[str, str]], None]:
    """Installs a package that offers processors: ``package({"MyFoo": "my_foo:MyFoo"})``."""

    def install(offered: dict[str, str]) -> None:
        info = tmp_path / "offering-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n", encoding="utf-8")
        lines = "".join(f"{name} = {path}\n" for name, path in offered.items())
        (info / "entry_points.txt").write_text(f"[guerrilla.processors]\n{lines}", encoding="utf-8")

    return install
