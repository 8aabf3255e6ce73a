"""A processor is a decorator, however it is written: a class with hooks, a function, or the decorator itself."""

from __future__ import annotations

import asyncio
import functools
import importlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

import pytest

from guerrilla.backends.base import CallNext, Decorator, Process, Task
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.processor import (
    Field,
    FunctionProcessor,
    Processor,
    ProcessorConfig,
    end_of_line,
    processor,
    stack,
)
from guerrilla.backends.registry import Registry
from guerrilla.config import ConfigError
from guerrilla.envelope import Address, Envelope
from guerrilla.smtp.replies import NO_SUCH_USER, OK, RECIPIENT_OK, Reply

Start: TypeAlias = Callable[..., Awaitable[Gateway]]
Module: TypeAlias = Callable[[str, str], None]
Package: TypeAlias = Callable[[dict[str, str]], None]

MY_FOO = '''
from guerrilla import NO_SUCH_USER, CallNext, Envelope, Field, Processor, ProcessorConfig, Reply

DIARY = []


class Db:
    @classmethod
    async def connect(cls, dsn):
        DIARY.append(f"connect {dsn}")
        return cls()

    async def close(self):
        DIARY.append("close")

    async def has(self, recipient):
        return recipient.user == "joe"

    async def save(self, envelope):
        return "foo1"


class MyFooConfig(ProcessorConfig):
    foo_dsn: str = Field(description="Where Foo is.")
    foo_strict: bool = True


class MyFoo(Processor[MyFooConfig]):
    """Saves mail in Foo, and refuses recipients that Foo does not know."""

    async def initialize(self) -> None:
        self.db = await Db.connect(self.config.foo_dsn)

    async def shutdown(self) -> None:
        await self.db.close()

    async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
        if self.config.foo_strict and not await self.db.has(envelope.rcpt_to[-1]):
            return NO_SUCH_USER
        return await call_next()

    async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
        envelope.queued_id = await self.db.save(envelope)
        return await call_next()
'''


def noting(name: str, diary: list[str]) -> Decorator:
    """Make a decorator that writes down when an envelope comes and when its reply goes back."""

    def decorator(following: Process) -> Process:
        async def process(envelope: Envelope, task: Task) -> Reply:
            diary.append(f"{name}>")
            reply = await following(envelope, task)
            diary.append(f"<{name}")
            return reply

        return process

    return decorator


# The kernel


@pytest.mark.parametrize("task", Task)
async def test_stack_order(task: Task) -> None:
    """The first of the list is called first; its reply is the whole stack's."""
    diary: list[str] = []
    process = stack([noting("a", diary), noting("b", diary), noting("c", diary)])
    assert (await process(Envelope(queued_id="q1"), task)).positive
    assert diary == ["a>", "b>", "c>", "<c", "<b", "<a"]


async def test_end_of_line() -> None:
    """What has passed all is queued, or the recipient is fine; a stack of nothing is the end of the line itself."""
    assert stack([]) is end_of_line
    assert await end_of_line(Envelope(), Task.VALIDATE_RCPT) is RECIPIENT_OK
    assert str(await end_of_line(Envelope(queued_id="q1"), Task.SAVE_MAIL)) == "250 2.0.0 OK: queued as q1"


async def test_an_end_of_ones_own() -> None:
    """A stack may end in another process than the end of the line."""

    async def end(envelope: Envelope, task: Task) -> Reply:
        return OK

    assert await stack([noting("a", [])], end)(Envelope(), Task.SAVE_MAIL) is OK


# The class


async def test_default_hooks_pass_on() -> None:
    """Each hook of the base does nothing, correctly."""

    async def following() -> Reply:
        return OK

    base = Processor(ProcessorConfig())
    await base.initialize()
    assert await base.save_mail(Envelope(), following) is OK
    assert await base.validate_rcpt(Envelope(), following) is OK
    await base.shutdown()


async def test_a_hook_that_is_not_written_costs_nothing() -> None:
    """Where a hook is not written, what follows is called directly: there is no coroutine in between."""

    class Saving(Processor[ProcessorConfig]):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return OK

    class Validating(Processor[ProcessorConfig]):
        async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return OK

    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def following(envelope: Envelope, task: Task) -> asyncio.Future[Reply]:
        return answer

    saving = Saving(ProcessorConfig()).decorate(following)
    validating = Validating(ProcessorConfig()).decorate(following)
    assert saving(Envelope(), Task.VALIDATE_RCPT) is answer
    assert validating(Envelope(), Task.SAVE_MAIL) is answer
    assert await saving(Envelope(), Task.SAVE_MAIL) is OK
    assert await validating(Envelope(), Task.VALIDATE_RCPT) is OK


class Annotates(Processor[ProcessorConfig]):
    """Writes on the envelope."""

    def annotate(self, envelope: Envelope) -> None:
        envelope.subject += "annotated"


async def test_what_annotates_is_called_for_a_message_and_what_follows_is_called_directly() -> None:
    """A processor that only writes on the envelope costs no coroutine, and is not asked about recipients."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    process = Annotates(ProcessorConfig()).decorate(lambda envelope, task: answer)
    message, recipient = Envelope(), Envelope()
    assert process(message, Task.SAVE_MAIL) is process(recipient, Task.VALIDATE_RCPT) is answer
    assert (message.subject, recipient.subject) == ("annotated", "")


async def test_what_annotates_has_a_save_mail_that_annotates_and_passes_on() -> None:
    """So it is called by a test, by who overrides it, and where the class has a hook for recipients too."""

    class Both(Annotates):
        async def validate_rcpt(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return NO_SUCH_USER

    class Overrides(Annotates):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            envelope.subject = "first "
            return await super().save_mail(envelope, call_next)

    for kind, subject in ((Both, "annotated"), (Overrides, "first annotated")):
        envelope = Envelope(queued_id="q1")
        process = stack([kind(ProcessorConfig()).decorate])
        assert (await process(envelope, Task.SAVE_MAIL)).positive
        assert envelope.subject == subject
    assert await stack([Both(ProcessorConfig()).decorate])(Envelope(), Task.VALIDATE_RCPT) is NO_SUCH_USER


def test_annotate_is_no_coroutine() -> None:
    """It would never be awaited, so it is refused where the class is written."""
    with pytest.raises(TypeError, match=r"Slow\.annotate is an async def; meant: a def, or save_mail in its place"):

        class Slow(Processor[ProcessorConfig]):
            async def annotate(self, envelope: Envelope) -> None:  # type: ignore[override]
                pass


async def test_an_inherited_hook_is_called() -> None:
    """A hook that a base class has written is a written one."""

    class Base(Processor[ProcessorConfig]):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return OK

    class Derived(Base):
        pass

    assert await stack([Derived(ProcessorConfig()).decorate])(Envelope(), Task.SAVE_MAIL) is OK


@pytest.mark.parametrize("name", ["save_mail", "validate_rcpt", "annotate"])
async def test_a_hook_that_an_instance_is_given_is_called(name: str) -> None:
    called: list[str] = []

    class Given(Processor[ProcessorConfig]):
        """What it does, it is told when it is made."""

        def __init__(self) -> None:
            super().__init__(ProcessorConfig())
            setattr(self, name, self._note if name == "annotate" else self._answer)

        def _note(self, envelope: Envelope) -> None:
            called.append(name)

        async def _answer(self, envelope: Envelope, call_next: CallNext) -> Reply:
            called.append(name)
            return await call_next()

    process = Given().decorate(end_of_line)
    assert (await process(Envelope(), Task.SAVE_MAIL)).positive
    assert (await process(Envelope(), Task.VALIDATE_RCPT)).positive
    assert called == [name]


async def test_call_next_may_be_awaited_later_or_never() -> None:
    """A hook says when the rest of the line is called, and what it makes of the answer."""
    diary: list[str] = []

    class Around(Processor[ProcessorConfig]):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            if envelope.helo == "stop":
                return NO_SUCH_USER
            reply = await call_next()
            diary.append(str(reply.code))
            return OK

    process = stack([Around(ProcessorConfig()).decorate, noting("next", diary)])
    assert await process(Envelope(), Task.SAVE_MAIL) is OK
    assert diary == ["next>", "<next", "250"]
    assert await process(Envelope(helo="stop"), Task.SAVE_MAIL) is NO_SUCH_USER
    assert len(diary) == 3


def test_config_type() -> None:
    """The configuration's type is the class's own type parameter, also through bases; or what it says itself."""

    class OneConfig(ProcessorConfig):
        one: int = 1

    class TwoConfig(OneConfig):
        two: int = Field(default=2)

    some_config = TypeVar("some_config", bound=ProcessorConfig)

    class Between(Processor[some_config], Generic[some_config]):
        pass

    class One(Processor[OneConfig]):
        pass

    class Inherited(One):
        pass

    class ThroughBetween(Between[TwoConfig]):
        pass

    class Named(One):
        config_type = TwoConfig

    class Plain(Processor):  # type: ignore[type-arg]
        pass

    assert Processor.config_type is Between.config_type is Plain.config_type is ProcessorConfig
    assert One.config_type is Inherited.config_type is OneConfig
    assert ThroughBetween.config_type is Named.config_type is TwoConfig


# The function


async def test_asynchronous_function(running: Start) -> None:
    """A function that returns a Reply stops the envelope; one that returns None lets it go on, to save as to RCPT."""

    @processor
    async def no_bitcoin(envelope: Envelope) -> Reply | None:
        """Refuse what is about money."""
        return NO_SUCH_USER if envelope.helo == "bitcoin" else None

    gateway = await running("NoBitcoin", {"validate_process": "NoBitcoin"}, NoBitcoin=no_bitcoin)
    for submit in (gateway.process, gateway.validate_rcpt):
        assert await submit(Envelope(helo="bitcoin")) is NO_SUCH_USER
        assert (await submit(Envelope())).positive
    assert no_bitcoin.__doc__ == "Refuse what is about money."
    assert await no_bitcoin(Envelope(helo="bitcoin")) is NO_SUCH_USER


async def test_plain_function_runs_in_a_thread(running: Start) -> None:
    """A plain function may block: it runs in a thread, and other work goes on meanwhile."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    go = threading.Event()

    @processor
    def blocking(envelope: Envelope) -> Reply | None:
        if envelope.helo != "block":
            return None
        loop.call_soon_threadsafe(entered.set)
        return OK if go.wait(10) else NO_SUCH_USER

    gateway = await running("Blocking", Blocking=blocking)
    answer = gateway.process(Envelope(helo="block"))
    await entered.wait()
    assert (await gateway.process(Envelope())).positive
    assert not answer.done()
    go.set()
    assert await answer is OK
    assert blocking(Envelope()) is None


async def test_functions_that_hang_hold_up_nobody_else(running: Start) -> None:
    """A plain function has threads of its own in each gateway: neither others nor a shutdown wait for what hangs."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    calls = 40
    entered = asyncio.Semaphore(0)
    go = threading.Event()
    names = set()

    @processor
    def hanging(envelope: Envelope) -> Reply | None:
        if envelope.helo == "hang":
            names.add(threading.current_thread().name.partition("_")[0])
            loop.call_soon_threadsafe(entered.release)
            go.wait(10)
        return None

    first = await running("Hanging", {"save_workers_size": calls}, Hanging=hanging)
    second = await running("Hanging", Hanging=hanging)
    try:
        answers = [first.process(Envelope(helo="hang")) for _ in range(calls)]
        for _ in range(calls):
            await entered.acquire()
        assert await asyncio.to_thread(int, "1") == 1, "the loop's own thread is free"
        assert (await second.process(Envelope())).positive
        await second.shutdown()
        assert not any(answer.done() for answer in answers)
    finally:
        go.set()
    assert all([(await answer).positive for answer in answers])
    assert names == {"hanging"}
    names.clear()
    assert (await first.process(Envelope(helo="hang"))).positive
    assert names == {"hanging"}, "the other gateway has shut down what is its own"


async def test_a_function_with_something_put_in() -> None:
    """What has no name, such as a partial, can be made a processor too."""

    async def only(user: str, envelope: Envelope) -> Reply | None:
        return None if envelope.helo == user else NO_SUCH_USER

    made = processor(functools.partial(only, "joe"))
    assert isinstance(made, FunctionProcessor)
    process = stack([made.decorate])
    assert await process(Envelope(helo="joe"), Task.VALIDATE_RCPT) is RECIPIENT_OK
    assert await process(Envelope(helo="ann"), Task.VALIDATE_RCPT) is NO_SUCH_USER


# One kernel


async def test_nothing_runs_differently_by_style(running: Start) -> None:
    """The same step as a class, as a function and as a bare decorator factory gives the same answers in one line."""

    def refuses(envelope: Envelope, name: str) -> Reply | None:
        return Reply(550, "5.7.1", name) if envelope.helo == name else None

    class Klass(Processor[ProcessorConfig]):
        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return refuses(envelope, "klass") or await call_next()

        validate_rcpt = save_mail

    @processor
    async def function(envelope: Envelope) -> Reply | None:
        return refuses(envelope, "function")

    def bare() -> Decorator:
        def decorator(following: Process) -> Process:
            async def process(envelope: Envelope, task: Task) -> Reply:
                return refuses(envelope, "bare") or await following(envelope, task)

            return process

        return decorator

    factories = {"Klass": Klass, "Function": function, "Bare": bare}
    for line in ("Klass|Function|Bare", "Bare|Klass|Function", "Function|Bare|Klass"):
        gateway = await running(line, {"validate_process": line}, **factories)
        for submit in (gateway.process, gateway.validate_rcpt):
            for name in ("klass", "function", "bare"):
                assert (await submit(Envelope(helo=name))).text == name
            assert (await submit(Envelope())).positive


# The ten lines


@pytest.mark.parametrize("way", ["added", "import path", "entry point"])
async def test_custom_processor(running: Start, module: Module, package: Package, way: str) -> None:
    """A processor with a configuration of its own saves and validates: added, by import path, by entry point."""
    module("my_foo_module", MY_FOO)
    factories: dict[str, Any] = {}
    name = "myfoo"
    if way == "added":
        factories["MyFoo"] = importlib.import_module("my_foo_module").MyFoo
    elif way == "import path":
        name = "my_foo_module:MyFoo"
    else:
        package({"MyFoo": "my_foo_module:MyFoo"})
    keys = {"validate_process": name, "foo_dsn": "foo://x"}
    gateway = await running(f"HeadersParser | {name}", keys, **factories)
    envelope = Envelope(rcpt_to=[Address("joe", "example.com")])
    assert await gateway.validate_rcpt(envelope) is RECIPIENT_OK
    assert str(await gateway.process(envelope)) == "250 2.0.0 OK: queued as foo1"
    envelope.rcpt_to.append(Address("ann", "example.com"))
    assert await gateway.validate_rcpt(envelope) is NO_SUCH_USER
    await gateway.shutdown()
    assert importlib.import_module("my_foo_module").DIARY == ["connect foo://x", "close"]


def test_configuration_of_a_custom_processor(module: Module) -> None:
    """Its keys are checked as those of the house are: missing, of the wrong type, misspelt."""
    module("my_foo_module", MY_FOO)
    config = {"save_process": "my_foo_module:MyFoo", "foo_strict": "yes", "foo_dns": "foo://x"}
    with pytest.raises(ConfigError) as raised:
        Registry().build(config)
    assert str(raised.value).split("\n") == [
        "backend_config.foo_dsn: this key is missing",
        'backend_config.foo_strict: found "yes", meant: true or false',
        "backend_config.foo_dns: unknown key, did you mean foo_dsn?",
    ]
