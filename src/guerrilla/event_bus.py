"""How events reach those who subscribed: in the order of their publication, and so that no subscriber harms anybody.

Whoever publishes never waits, never fails, and never runs a subscriber. Each subscription has a queue of its own, of
``CAPACITY`` events, and something that empties it: a task on the daemon's event loop for an ``async def`` function, a
thread for a plain one. What a subscriber raises is logged. One that hangs loses its own events, and no one else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from structlog.typing import FilteringBoundLogger

from guerrilla.events import Event, of_topic

CAPACITY: Final = 1024
"""Events that may wait for one subscriber; further ones are dropped and counted."""
CLOSE_TIMEOUT: Final = 5.0
"""Seconds that subscribers have at the end for what is queued."""
CANCEL_TIMEOUT: Final = 1.0
"""Seconds that a subscriber which was cancelled then may take to end."""

EventT = TypeVar("EventT", bound=Event)


class EventBus:
    """Takes events from whoever publishes them to whoever subscribed; belongs to one daemon, and outlives its restarts.

    Between ``start`` and ``close`` events are delivered. What is published at other times waits, within the bounds of
    the queues, for the next start. ``subscribe``, ``unsubscribe``, ``publish`` and ``wants`` may be called from any
    thread, at any time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._matching = _Matching(())
        self._run: _Run | None = None
        self._dropped_before = 0  # by those who are subscribed no more

    @overload
    def subscribe(self, event: type[EventT], function: Callable[[EventT], object]) -> None: ...
    @overload
    def subscribe(self, event: str, function: Callable[[Any], object]) -> None: ...
    def subscribe(self, event: type[Event] | str, function: Callable[[Any], object]) -> None:
        """Call the function with each event of this class, of those below it, or of this topic.

        An ``async def`` function runs on the event loop of the daemon, and must not block it; a plain one runs in a
        thread of its own. To subscribe the same function to the same events again changes nothing.

        Raises:
            ValueError: if there is no such topic.
            TypeError: if it is neither a class of events nor a topic.
        """
        wanted = _class_of(event)
        with self._lock:
            if any(each.is_for(wanted, function) for each in self._subscriptions):
                return
            added = _Subscription(wanted, function)
            if self._run is not None:
                added.attach(self._run)
            self._replace((*self._subscriptions, added))

    def unsubscribe(self, event: type[Event] | str, function: Callable[[Any], object]) -> None:
        """Call the function no more; what is queued for it is dropped. Name the same event as with ``subscribe``.

        Raises:
            ValueError: if there is no such topic, or no such subscription.
            TypeError: if it is neither a class of events nor a topic.
        """
        wanted = _class_of(event)
        with self._lock:
            gone = [each for each in self._subscriptions if each.is_for(wanted, function)]
            if not gone:
                raise ValueError(f"{function!r} is not subscribed to {wanted.__name__}")
            self._replace(tuple(each for each in self._subscriptions if each not in gone))
            self._dropped_before += sum(each.dropped for each in gone)
        for each in gone:
            each.cancel()

    def wants(self, event: type[Event]) -> bool:
        """Whether anybody subscribed to this class: one look-up, so that nobody builds an event for no one."""
        return bool(self._matching[event])

    def publish(self, event: Event) -> None:
        """Queue the event for everybody who wants it. Never waits and never raises."""
        for subscription in self._matching[type(event)]:
            subscription.put(event)

    @property
    def dropped(self) -> int:
        """How many events were dropped because their subscribers did not keep up."""
        with self._lock:
            return self._dropped_before + sum(each.dropped for each in self._subscriptions)

    def start(self, log: FilteringBoundLogger) -> None:
        """Begin to deliver, on the running event loop; what subscribers raise is told to the log.

        Raises RuntimeError if it was started before, or if no loop is running.
        """
        run = _Run(asyncio.get_running_loop(), log)
        with self._lock:
            if self._run is not None:
                raise RuntimeError("the events are being delivered already")
            self._run = run
            for each in self._subscriptions:
                each.attach(run)

    async def close(self, limit: float = CLOSE_TIMEOUT) -> None:
        """Deliver what is queued, within ``limit`` seconds, and stop. Who hangs is abandoned. May be called twice."""
        with self._lock:
            run, self._run = self._run, None
            consumers = [each.detach() for each in self._subscriptions]
        if run is not None:
            await run.close([each for each in consumers if each is not None], limit)

    def _replace(self, subscriptions: tuple[_Subscription, ...]) -> None:
        self._subscriptions = subscriptions
        self._matching = _Matching(subscriptions)


class _Matching(dict[type[Event], "tuple[_Subscription, ...]"]):
    """Who wants the events of a class. Found once; thrown away when somebody subscribes or goes."""

    def __init__(self, subscriptions: tuple[_Subscription, ...]) -> None:
        super().__init__()
        self._subscriptions = subscriptions

    def __missing__(self, event: type[Event]) -> tuple[_Subscription, ...]:
        found = self[event] = tuple(each for each in self._subscriptions if issubclass(event, each.event))
        return found


def _class_of(event: object) -> type[Event]:
    if isinstance(event, str):
        return of_topic(event)
    if isinstance(event, type) and issubclass(event, Event):
        return event
    raise TypeError(f"found {event!r}; meant: a class of events such as Queued, or a topic such as 'mail:queued'")


class _Subscription:
    """One function, and the events that wait for it.

    While there is a consumer, a queue that is not empty is being emptied, or about to be: so the consumer is woken only
    when the first event comes into an empty queue.
    """

    def __init__(self, event: type[Event], function: Callable[[Any], object]) -> None:
        self.event = event
        self.function = function
        self.dropped = 0
        self._lock = threading.Lock()
        self._queue: deque[Event] = deque()
        self._overflowing = False
        self._consumer: _Consumer | None = None

    @property
    def name(self) -> str:
        # str: what a proxy answers, which has all attributes, may be anything, and compiled code holds to types
        return str(getattr(self.function, "__qualname__", None) or repr(self.function))

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def is_for(self, event: type[Event], function: Callable[[Any], object]) -> bool:
        own: Any = self.function  # an object may answer what is no bool when it is compared
        return self.event is event and bool(own == function)

    def put(self, event: Event) -> None:
        with self._lock:
            consumer = self._consumer
            if len(self._queue) < CAPACITY:
                self._queue.append(event)
                wake, tell = len(self._queue) == 1, False
            else:
                self.dropped += 1
                wake, tell = False, not self._overflowing
                self._overflowing = True
        if consumer is not None:
            if wake:
                consumer.wake()
            elif tell:
                consumer.tell_overflow()

    def take(self) -> Event | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._overflowing = False
            return None

    def attach(self, run: _Run) -> None:
        kind = _TaskConsumer if _is_async(self.function) else _ThreadConsumer
        consumer = kind(self, run)
        with self._lock:
            self._consumer = consumer
            waiting, overflowing = bool(self._queue), self._overflowing
        if overflowing:
            consumer.tell_overflow()
        if waiting:
            consumer.wake()

    def detach(self) -> _Consumer | None:
        with self._lock:
            consumer, self._consumer = self._consumer, None
        return consumer

    def cancel(self) -> None:
        consumer = self.detach()
        if consumer is not None:
            consumer.retire()


def _is_async(function: Callable[[Any], object]) -> bool:
    call = type(function).__call__  # an object may be a coroutine function too
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class _Run:
    """One run of the daemon, from ``start`` to ``close``: its loop, its log, and the consumers that are at work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: FilteringBoundLogger) -> None:
        self.loop = loop
        self.log = log
        self._at_work: dict[asyncio.Future[None], _Consumer] = {}

    def began(self, work: asyncio.Future[None], consumer: _Consumer) -> None:
        self._at_work[work] = consumer
        work.add_done_callback(lambda done: self._at_work.pop(done, None))

    async def close(self, consumers: list[_Consumer], limit: float) -> None:
        for consumer in consumers:
            consumer.finish()
        if not self._at_work:
            return
        _, hanging = await asyncio.wait(list(self._at_work), timeout=limit)
        for work in hanging:
            consumer = self._at_work[work]
            consumer.abandon()
            self.log.error("a subscriber does not end: it is abandoned", subscriber=consumer.name)
        tasks = [work for work in hanging if isinstance(work, asyncio.Task)]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)


class _Consumer(ABC):
    """Empties the queue of one subscription during one run. Only ``wake`` and ``retire`` are for any thread."""

    def __init__(self, subscription: _Subscription, run: _Run) -> None:
        self._subscription = subscription
        self._run = run
        self._stopped = False

    @property
    def name(self) -> str:
        return self._subscription.name

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed without us
            self._run.loop.call_soon_threadsafe(self._begin)

    def retire(self) -> None:
        """End after the event that is being delivered: the subscription is gone."""
        self._stopped = True

    @abstractmethod
    def finish(self) -> None:
        """End when the queue is empty."""

    @abstractmethod
    def abandon(self) -> None:
        """End as soon as that is possible."""

    def tell_overflow(self) -> None:
        """Say once in a burst that events are dropped. Whoever publishes must not suffer from a log that fails."""
        with contextlib.suppress(Exception):
            self._run.log.warning(
                "a subscriber does not keep up: events are dropped",
                subscriber=self.name,
                waiting=CAPACITY,
                dropped=self._subscription.dropped,
            )

    @abstractmethod
    def _begin(self) -> None:
        """Deliver what is in the queue."""

    def _next(self) -> Event | None:
        return None if self._stopped else self._subscription.take()

    def _failed(self, event: Event) -> None:
        with contextlib.suppress(Exception):
            self._run.log.exception("a subscriber failed", subscriber=self.name, topic=event.topic)


class _TaskConsumer(_Consumer):
    """For an ``async def`` function: a task, as long as there is something in the queue."""

    _task: asyncio.Task[None] | None = None

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = self._run.loop.create_task(self._empty(), name=f"events for {self.name}")
            self._run.began(self._task, self)

    async def _empty(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while (event := self._next()) is not None:
            try:
                await self._subscription.function(event)  # type: ignore[misc]  # it is an async function
            except (KeyboardInterrupt, GeneratorExit):
                raise  # it is the program that is to end
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and task.cancelling():
                    raise
                self._failed(event)
            await asyncio.sleep(0)  # mail comes first, also when the function never waits

    def finish(self) -> None:
        if self._subscription.waiting:
            self._begin()

    def abandon(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()


class _ThreadConsumer(_Consumer):
    """For a plain function: a thread, from the first event on."""

    def __init__(self, subscription: _Subscription, run: _Run) -> None:
        super().__init__(subscription, run)
        self._arrived = threading.Event()
        self._finishing = False
        self._ended: asyncio.Future[None] | None = None

    def _begin(self) -> None:
        if self._ended is None:
            self._ended = self._run.loop.create_future()
            self._run.began(self._ended, self)
            threading.Thread(target=self._empty, name=f"events for {self.name}", daemon=True).start()
        self._arrived.set()

    def _empty(self) -> None:
        try:
            finishing = False
            while not self._stopped and not finishing:
                self._arrived.wait()
                self._arrived.clear()
                finishing = self._finishing  # asked before the queue is emptied: what came before the end is delivered
                while (event := self._next()) is not None:
                    self._call(event)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: we were abandoned
                self._run.loop.call_soon_threadsafe(self._end)

    def _call(self, event: Event) -> None:
        try:
            result = self._subscription.function(event)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{self.name} returned a coroutine; meant: subscribe an async def function itself")
        except BaseException:  # also SystemExit: it would end the thread, and with it the subscription
            self._failed(event)

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def retire(self) -> None:
        self._stopped = True
        self._arrived.set()

    def finish(self) -> None:
        self._finishing = True
        if self._ended is not None or self._subscription.waiting:
            self._begin()

    def abandon(self) -> None:
        self.retire()
