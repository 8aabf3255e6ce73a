"""Events reach those who subscribed, in order; a subscriber that raises, hangs or lags harms nobody."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from guerrilla.event_bus import CAPACITY, EventBus
from guerrilla.events import ConfigChange, Connected, Disconnected, Event, MailEvent, ServerChange

PATIENCE = 20.0
A_MOMENT = 0.05


def connected(number: int = 0) -> Connected:
    return Connected(server="127.0.0.1:25", remote_ip="192.0.2.1", remote_port=number)


GONE = Disconnected(server="127.0.0.1:25", remote_ip="192.0.2.1", seconds=1.0, messages=1)


class Taker:
    """Subscribes as either kind of function, and gives what came to the test."""

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[Event] = queue.SimpleQueue()

    async def on_event(self, event: Event) -> None:
        self._came.put(event)

    def on_event_in_thread(self, event: Event) -> None:
        self._came.put(event)

    async def take(self, number: int = 1) -> list[Event]:
        return await asyncio.to_thread(lambda: [self._came.get(timeout=PATIENCE) for _ in range(number)])

    @property
    def empty(self) -> bool:
        return self._came.empty()


@pytest.fixture
def records() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(records: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[records], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


@pytest.fixture
async def bus() -> AsyncIterator[EventBus]:
    bus = EventBus()
    yield bus
    await bus.close()


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture(params=["on_event", "on_event_in_thread"])
def function(request: pytest.FixtureRequest, taker: Taker) -> Callable[[Event], object]:
    """The taker as an async function, and as a plain one."""
    found: Callable[[Event], object] = getattr(taker, request.param)
    return found


# Who gets what


async def test_events_come_in_the_order_of_their_publication(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    bus.start(log)
    events = [connected(number) for number in range(100)]
    for event in events:
        bus.publish(event)
    assert [event is expected for event, expected in zip(await taker.take(100), events, strict=True)] == [True] * 100


@pytest.mark.parametrize("wanted", [Connected, MailEvent, Event, "mail:connected"])
async def test_one_subscribes_to_a_class_to_all_below_it_or_to_a_topic(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, wanted: type[Event] | str
) -> None:
    bus.subscribe(wanted, taker.on_event)
    bus.start(log)
    bus.publish(connected())
    assert await taker.take() == [connected()]


@pytest.mark.parametrize("other", [Disconnected, ConfigChange, ServerChange, "mail:queued"])
async def test_what_one_did_not_subscribe_to_does_not_come(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, other: type[Event] | str
) -> None:
    bus.subscribe(other, taker.on_event)
    bus.start(log)
    bus.publish(connected())
    await bus.close()
    assert taker.empty


async def test_an_event_of_ones_own_is_delivered_by_its_class(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker
) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Greylisted(MailEvent):
        tries: int

    bus.subscribe(Greylisted, taker.on_event)
    bus.start(log)
    event = Greylisted(server="", remote_ip="", tries=1)
    assert bus.wants(Greylisted)
    bus.publish(event)
    assert await taker.take() == [event]


def test_an_event_is_wanted_when_somebody_subscribed_to_it_or_to_a_class_above_it(taker: Taker) -> None:
    bus = EventBus()
    assert not bus.wants(Connected)
    bus.subscribe(MailEvent, taker.on_event)
    assert bus.wants(Connected)
    assert not bus.wants(ConfigChange)
    bus.unsubscribe(MailEvent, taker.on_event)
    assert not bus.wants(Connected)


async def test_who_subscribes_twice_is_called_once(bus: EventBus, log: FilteringBoundLogger, taker: Taker) -> None:
    bus.subscribe(Connected, taker.on_event)
    bus.subscribe("mail:connected", taker.on_event)
    bus.start(log)
    bus.publish(connected())
    await bus.close()
    assert await taker.take() == [connected()]
    assert taker.empty


async def test_who_unsubscribed_gets_nothing_more_also_of_what_was_queued(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    bus.start(log)
    bus.publish(connected(1))
    assert await taker.take() == [connected(1)]
    bus.publish(connected(2))  # the loop has not turned: it is queued still
    bus.unsubscribe("mail:connected", function)
    bus.publish(connected(3))
    await bus.close()
    assert taker.empty


def test_to_unsubscribe_what_is_not_subscribed_is_an_error(taker: Taker) -> None:
    bus = EventBus()
    bus.subscribe(MailEvent, taker.on_event)
    with pytest.raises(ValueError, match="is not subscribed to Connected"):
        bus.unsubscribe(Connected, taker.on_event)


def test_an_unknown_topic_is_refused_with_what_was_meant(taker: Taker) -> None:
    bus = EventBus()
    with pytest.raises(ValueError, match="meant: 'mail:connected'"):
        bus.subscribe("mail:connect", taker.on_event)
    with pytest.raises(ValueError, match="meant: 'mail:connected'"):
        bus.unsubscribe("mail:connect", taker.on_event)


def test_what_is_no_event_is_refused(taker: Taker) -> None:
    wrong: Any = int
    with pytest.raises(TypeError, match="found <class 'int'>; meant: a class of events"):
        EventBus().subscribe(wrong, taker.on_event)


# When


async def test_what_was_published_before_the_start_is_delivered_after_it(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    bus.publish(connected(1))
    bus.publish(connected(2))
    assert taker.empty
    bus.start(log)
    assert await taker.take(2) == [connected(1), connected(2)]


async def test_subscriptions_survive_a_restart_and_so_do_the_events_between(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    for number in range(3):
        bus.start(log)
        bus.publish(connected(number))
        await bus.close()
        bus.publish(GONE)
        bus.publish(connected(number + 10))
    bus.start(log)
    assert [event.remote_port for event in await taker.take(6) if isinstance(event, Connected)] == [
        0,
        10,
        1,
        11,
        2,
        12,
    ]


async def test_who_subscribes_while_events_are_delivered_gets_those_that_come_then(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.start(log)
    bus.publish(connected(1))
    await asyncio.to_thread(bus.subscribe, Connected, function)
    bus.publish(connected(2))
    assert await taker.take() == [connected(2)]


async def test_close_delivers_what_is_queued(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    bus.start(log)
    for number in range(CAPACITY):
        bus.publish(connected(number))
    await bus.close()
    assert len(await taker.take(CAPACITY)) == CAPACITY
    await bus.close()


async def test_a_thread_ends_with_the_bus(bus: EventBus, log: FilteringBoundLogger, taker: Taker) -> None:
    threads: list[threading.Thread] = []
    bus.subscribe(Connected, lambda event: threads.append(threading.current_thread()))
    bus.start(log)
    bus.publish(connected())
    await bus.close()
    await asyncio.to_thread(threads[0].join, PATIENCE)
    assert not threads[0].is_alive()
    assert threads[0].daemon


async def test_to_start_twice_is_an_error(bus: EventBus, log: FilteringBoundLogger) -> None:
    bus.start(log)
    with pytest.raises(RuntimeError, match="already"):
        bus.start(log)


async def test_events_may_be_published_from_any_thread(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker, function: Callable[[Event], object]
) -> None:
    bus.subscribe(Connected, function)
    bus.start(log)

    def publish() -> None:
        for number in range(100):
            bus.publish(connected(number))

    await asyncio.gather(*(asyncio.to_thread(publish) for _ in range(5)))
    events = await taker.take(500)
    assert sorted(event.remote_port for event in events if isinstance(event, Connected)) == sorted([*range(100)] * 5)


def test_to_publish_after_the_loop_was_closed_without_the_bus_is_no_error(
    log: FilteringBoundLogger, taker: Taker
) -> None:
    bus = EventBus()
    bus.subscribe(Connected, taker.on_event)

    async def start() -> None:
        bus.start(log)

    asyncio.run(start())
    bus.publish(connected())
    assert taker.empty


# Subscribers that fail


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_what_a_subscriber_raises_is_logged_and_it_gets_the_next_event(
    bus: EventBus,
    log: FilteringBoundLogger,
    records: LogCapture,
    taker: Taker,
    kind: str,
    error: type[BaseException],
) -> None:
    def fail_once(event: Connected) -> None:
        if event.remote_port == 1:
            raise error("the first one fails")
        taker.on_event_in_thread(event)

    async def fail_once_async(event: Connected) -> None:
        fail_once(event)

    bus.subscribe(Connected, fail_once_async if kind == "async" else fail_once)
    bus.start(log)
    bus.publish(connected(1))
    bus.publish(connected(2))
    assert await taker.take() == [connected(2)]
    (record,) = records.entries
    assert (record["event"], record["topic"]) == ("a subscriber failed", "mail:connected")
    assert "fail_once" in record["subscriber"]


async def test_a_log_that_fails_too_harms_nobody(bus: EventBus, taker: Taker) -> None:
    def broken(*_: object) -> Any:
        raise OSError("no log")

    log: FilteringBoundLogger = structlog.wrap_logger(structlog.PrintLogger(), processors=[broken])

    def fail_once(event: Connected) -> None:
        if event.remote_port == 1:
            raise ValueError
        taker.on_event_in_thread(event)

    bus.subscribe(Connected, fail_once)
    bus.start(log)
    bus.publish(connected(1))
    bus.publish(connected(2))
    assert await taker.take() == [connected(2)]


async def test_a_plain_function_that_makes_a_coroutine_is_told_so(
    bus: EventBus, log: FilteringBoundLogger, records: LogCapture, taker: Taker
) -> None:
    bus.subscribe(Connected, lambda event: taker.on_event(event))
    bus.start(log)
    bus.publish(connected())
    await bus.close()
    assert taker.empty
    assert [record["event"] for record in records.entries] == ["a subscriber failed"]


async def test_objects_and_partial_functions_are_called_as_what_they_are(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker
) -> None:
    class Asynchronous:
        async def __call__(self, event: Event) -> None:
            asyncio.get_running_loop()
            await taker.on_event(event)

    async def with_word(word: str, event: Event) -> None:
        asyncio.get_running_loop()
        await taker.on_event(event)

    bus.subscribe(Connected, Asynchronous())
    bus.subscribe(Connected, functools.partial(with_word, "hello"))
    bus.start(log)
    bus.publish(connected())
    assert await taker.take(2) == [connected(), connected()]


class Proxy:
    """Stands for something far away, as that of XML-RPC: whatever is asked of it is another proxy, also to compare."""

    def __init__(self, take: Callable[[Any], object]) -> None:
        self._take = take

    def __getattr__(self, name: str) -> Proxy:
        return self

    def __eq__(self, other: object) -> Any:
        return [self] if other is self else []

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, event: Event) -> None:
        self._take(event)


async def test_a_proxy_may_subscribe(bus: EventBus, log: FilteringBoundLogger, taker: Taker) -> None:
    bus.start(log)
    proxy = Proxy(taker.on_event_in_thread)
    for _ in range(2):
        bus.subscribe(Event, Proxy(taker.on_event_in_thread))
        bus.subscribe(Event, proxy)
    bus.publish(connected())
    assert len(await taker.take(3)) == 3
    bus.unsubscribe(Event, proxy)
    bus.publish(connected())
    assert len(await taker.take(2)) == 2
    await bus.close()
    assert taker.empty


async def test_a_subscriber_that_hangs_holds_neither_the_others_nor_who_publishes(
    bus: EventBus, log: FilteringBoundLogger, records: LogCapture, taker: Taker
) -> None:
    release = threading.Event()
    bus.subscribe(Connected, lambda event: release.wait(PATIENCE))
    bus.subscribe(Connected, taker.on_event)
    bus.start(log)
    for number in range(10):
        bus.publish(connected(number))
    assert len(await taker.take(10)) == 10
    await bus.close(A_MOMENT)
    assert [record["event"] for record in records.entries] == ["a subscriber does not end: it is abandoned"]
    release.set()


async def test_a_thread_that_was_abandoned_takes_no_events_when_it_comes_back(
    bus: EventBus, log: FilteringBoundLogger
) -> None:
    began, release, seen = threading.Event(), threading.Event(), queue.SimpleQueue[tuple[int, int]]()

    def hang_once(event: Connected) -> None:
        seen.put((event.remote_port, threading.get_ident()))
        if event.remote_port == 1:
            began.set()
            release.wait(PATIENCE)

    bus.subscribe(Connected, hang_once)
    bus.start(log)
    bus.publish(connected(1))
    bus.publish(connected(2))
    assert await asyncio.to_thread(began.wait, PATIENCE)
    await bus.close(A_MOMENT)
    bus.start(log)
    (first, hung), (second, fresh) = await asyncio.to_thread(lambda: [seen.get(timeout=PATIENCE) for _ in range(2)])
    release.set()
    bus.publish(connected(3))
    third, also = await asyncio.to_thread(lambda: seen.get(timeout=PATIENCE))
    assert (first, second, third) == (1, 2, 3)
    assert hung != fresh == also


async def test_a_task_that_hangs_is_cancelled_at_the_end_and_what_it_did_not_take_waits_for_the_next_start(
    bus: EventBus, log: FilteringBoundLogger, records: LogCapture, taker: Taker
) -> None:
    cancelled = asyncio.Event()

    async def hang_once(event: Connected) -> None:
        if event.remote_port == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        await taker.on_event(event)

    bus.subscribe(Connected, hang_once)
    bus.start(log)
    bus.publish(connected(1))
    bus.publish(connected(2))
    await bus.close(A_MOMENT)
    assert cancelled.is_set()
    assert [record["event"] for record in records.entries] == ["a subscriber does not end: it is abandoned"]
    assert taker.empty
    bus.start(log)
    assert await taker.take() == [connected(2)]


async def test_a_task_that_swallows_its_cancellation_gets_no_further_event(
    bus: EventBus, log: FilteringBoundLogger, taker: Taker
) -> None:
    async def swallow(event: Connected) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await taker.on_event(event)

    bus.subscribe(Connected, swallow)
    bus.start(log)
    bus.publish(connected(1))
    bus.publish(connected(2))
    await bus.close(A_MOMENT)
    assert await taker.take() == [connected(1)]
    assert taker.empty
    bus.unsubscribe(Connected, swallow)


async def test_a_thread_that_ends_after_its_loop_harms_nobody(log: FilteringBoundLogger) -> None:
    began, release, thread = threading.Event(), threading.Event(), queue.SimpleQueue[threading.Thread]()

    def hang(event: Event) -> None:
        thread.put(threading.current_thread())
        began.set()
        release.wait(PATIENCE)

    async def live() -> None:
        bus = EventBus()
        bus.subscribe(Connected, hang)
        bus.start(log)
        bus.publish(connected())
        assert await asyncio.to_thread(began.wait, PATIENCE)
        await bus.close(A_MOMENT)

    await asyncio.to_thread(asyncio.run, live())
    release.set()
    hung = thread.get(timeout=PATIENCE)
    await asyncio.to_thread(hung.join, PATIENCE)
    assert not hung.is_alive()


# Subscribers that do not keep up


async def test_beyond_the_capacity_events_are_dropped_and_counted_and_logged_once_in_a_burst(
    bus: EventBus, log: FilteringBoundLogger, records: LogCapture, taker: Taker
) -> None:
    bus.subscribe(Connected, taker.on_event)
    bus.start(log)
    for burst in (1, 2):
        for number in range(CAPACITY + 10):
            bus.publish(connected(number))
        assert bus.dropped == 10 * burst
        events = await taker.take(CAPACITY)
        assert events[-1] == connected(CAPACITY - 1)
        assert [record["dropped"] for record in records.entries] == [1, 11][:burst]
        await _turn_until_idle()
    bus.unsubscribe(Connected, taker.on_event)
    assert bus.dropped == 20


async def _turn_until_idle() -> None:
    """Let the loop turn until no task but our own is left."""
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)


async def test_what_was_dropped_before_the_start_is_told_at_the_start(
    bus: EventBus, log: FilteringBoundLogger, records: LogCapture, taker: Taker
) -> None:
    bus.subscribe(Connected, taker.on_event)
    for number in range(CAPACITY + 3):
        bus.publish(connected(number))
    bus.start(log)
    assert [(record["event"], record["dropped"]) for record in records.entries] == [
        ("a subscriber does not keep up: events are dropped", 3)
    ]
    assert len(await taker.take(CAPACITY)) == CAPACITY
