"""A processor: one step of the production line. Start here to write your own.

    class MyFooConfig(ProcessorConfig):
        foo_dsn: str = Field(description="Where Foo is.")

    class MyFoo(Processor[MyFooConfig]):
        \"\"\"Saves mail in Foo.\"\"\"

        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            ...
            return await call_next()

The kernel is ``Process = (Envelope, Task) -> Awaitable[Reply]`` and ``Decorator = (Process) -> Process``. The class
with hooks, the ``@processor`` function and the bare decorator factory are three ways to write one decorator; all
three run the same way.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final, Generic, TypeAlias, TypeVar, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field
from structlog.typing import FilteringBoundLogger

from guerrilla.backends.base import CallNext, Decorator, Process, Task
from guerrilla.backends.hooks import Annotator, end_of_line, hooked
from guerrilla.config import Duration
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import Reply

__all__ = [
    "CallNext",
    "Decorator",
    "Duration",
    "Envelope",
    "Factory",
    "Field",
    "FunctionProcessor",
    "Process",
    "Processor",
    "ProcessorConfig",
    "Reply",
    "Task",
    "end_of_line",
    "processor",
    "stack",
]


class ProcessorConfig(BaseModel):
    """The keys that a processor takes from ``backend_config``, each with its type, default and description.

    Types are strict: the text ``"1"`` is not the number 1. Keys of other processors are none of its business.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


ConfigT = TypeVar("ConfigT", bound=ProcessorConfig)


class Processor(Generic[ConfigT]):
    """One step of the production line: override the hooks that you need; each of the others passes on.

    One instance serves all workers and both stacks, so its state is shared by the envelopes that are on their way at
    the same time. What a hook raises is a bug or an outage: the client gets ``451 4.3.0``, the log gets the traceback.
    A hook may be cancelled at any await, when its time is over: then the client has been told to try again, and what
    was half done must be undone.
    """

    config_type: ClassVar[type[ProcessorConfig]] = ProcessorConfig

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self.log: FilteringBoundLogger = structlog.get_logger()
        """Where the operator reads; the gateway puts the backend's own log here before ``initialize``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Learn the configuration's type from the class's own type parameter.

        Raises TypeError where ``annotate`` is written as a coroutine: nobody would await it.
        """
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.annotate):
            raise TypeError(f"{cls.__name__}.annotate is an async def; meant: a def, or save_mail in its place")
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, ProcessorConfig):
                    cls.config_type = argument

    async def initialize(self) -> None:
        """Called once, before the first envelope: open what you need. Raise to keep the gateway from starting."""

    async def shutdown(self) -> None:
        """Called once, after the last envelope, in reverse order of initialize, also when that has failed."""

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Called for each RCPT when listed in ``validate_process``: the recipient in question is the last one."""
        return await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        """Called for each message when listed in ``save_process``."""
        self.annotate(envelope)
        return await call_next()

    def annotate(self, envelope: Envelope) -> None:
        """Called for each message by ``save_mail``, as it is when it is not overridden, before the message passes on.

        Override this one where nothing is awaited, refused or kept: the processor only writes on the envelope what it
        finds there. It costs less than a ``save_mail``. It is called in the event loop and must not block; at the head
        of a line no task is current.
        """

    def decorate(self, following: Process) -> Process:
        """Stack this processor on the one that follows: the seed's Decorator."""
        save_mail = self.save_mail if is_own(self.save_mail, Processor.save_mail) else None
        validate_rcpt = self.validate_rcpt if is_own(self.validate_rcpt, Processor.validate_rcpt) else None
        if save_mail is None and is_own(self.annotate, Processor.annotate):
            if validate_rcpt is None:
                return Annotator(self.annotate, following)
            save_mail = self.save_mail
        return hooked(save_mail, validate_rcpt, following)


def is_own(method: Callable[..., Any], inherited: Callable[..., Any]) -> bool:
    """Return whether the method of an instance is another one than that of its base: by its class, or its own."""
    return getattr(method, "__func__", None) is not inherited


Function: TypeAlias = Callable[[Envelope], Reply | None] | Callable[[Envelope], Awaitable[Reply | None]]


MAX_THREADS: Final = 64
"""Threads of one plain function: so many calls may hang before the next one waits."""


class FunctionProcessor(Processor[ProcessorConfig]):
    """What ``@processor`` makes of a function. Calling it calls the function.

    A plain ``def`` has threads of its own, so that a look-up that hangs holds up no other processor. Until it is
    initialized it runs in the event loop's threads.
    """

    def __init__(self, function: Function) -> None:
        super().__init__(ProcessorConfig())
        self._function: Callable[[Envelope], Any] = function
        self._asynchronous = inspect.iscoroutinefunction(function)
        self._threads: ThreadPoolExecutor | None = None
        functools.update_wrapper(self, function)

    def __call__(self, envelope: Envelope) -> Any:
        """Call the function itself, as a test does."""
        return self._function(envelope)

    async def initialize(self) -> None:
        """Make the threads; each is started when it is first needed."""
        if not self._asynchronous:
            name = getattr(self, "__name__", "processor")
            self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=name)

    async def shutdown(self) -> None:
        """Let the threads go. One that hangs is not waited for."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _run(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if self._asynchronous:
            reply = await self._function(envelope)
        else:
            call = contextvars.copy_context().run  # as asyncio.to_thread does
            reply = await asyncio.get_running_loop().run_in_executor(self._threads, call, self._function, envelope)
        return reply if reply is not None else await call_next()

    validate_rcpt = _run
    save_mail = _run


def processor(function: Function) -> FunctionProcessor:
    """Make a processor of a function that returns a Reply to stop, or None to go on.

    An ``async def`` runs on the event loop; a plain ``def`` runs in a thread, so that blocking code is safe. A thread
    cannot be cancelled: a plain function may check and look up, but what stores a message should be asynchronous.
    """
    return FunctionProcessor(function)


Factory: TypeAlias = type[Processor[Any]] | FunctionProcessor | Callable[[], Decorator]
"""What a name in ``save_process`` may stand for: a class, a ``@processor`` function, or the seed's own form, a function
without arguments that returns a decorator."""


def stack(decorators: Sequence[Decorator], end: Process = end_of_line) -> Process:
    """Stack processors on one another: the first of the list is called first, the last one calls ``end``."""
    process = end
    for decorator in reversed(decorators):
        process = decorator(process)
    return process
