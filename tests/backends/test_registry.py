"""From names and keys to a production line; and what is wrong with them is said all at once, with what was meant."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guerrilla.backends.base import CallNext, Decorator
from guerrilla.backends.gateway import Gateway
from guerrilla.backends.processor import Field, Processor, ProcessorConfig, processor
from guerrilla.backends.registry import DEFAULT_LINE, GatewayConfig, Registry
from guerrilla.config import ConfigError
from guerrilla.envelope import Envelope
from guerrilla.smtp.replies import OK, Reply

Start: TypeAlias = Callable[..., Awaitable[Gateway]]
Module: TypeAlias = Callable[[str, str], None]
Package: TypeAlias = Callable[[dict[str, str]], None]

SEED = json.loads(
    """{
        "save_process": "HeadersParser|Debugger|Hasher|Header|Compressor|Redis|MySql",
        "save_workers_size" : 1,
        "log_received_mails" : true,
        "mysql_db":"gmail_mail",
        "mysql_host":"127.0.0.1:3306",
        "mysql_pass":"ok",
        "mysql_user":"root",
        "mail_table":"new_mail",
        "redis_interface" : "127.0.0.1:6379",
        "redis_expire_seconds" : 7200,
        "primary_mail_host":"sharklasers.com"
    }"""
)
"""The example of the Go program's documentation."""


class FooConfig(ProcessorConfig):
    foo_dsn: str = Field(min_length=1)
    foo_size: int = 1


class Foo(Processor[FooConfig]):
    """Does foo."""


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add("Foo", Foo)
    return registry


def problems(registry: Registry, **config: object) -> list[str]:
    return [str(problem) for problem in registry.check(config)]


# Names


@pytest.mark.parametrize(
    "line", ["HeadersParser|Hasher", "headersparser|HASHER", "  HeadersParser |\tHasher\n", "hEADERSpARSER| hasher"]
)
def test_case_and_spaces(registry: Registry, line: str) -> None:
    """Upper and lower case are the same, spaces around the | are allowed; names are told as they are defined."""
    assert registry.chain({"save_process": line}) == ["HeadersParser", "Hasher"]
    assert [name for name, _ in registry.build({"save_process": line}).processors] == ["HeadersParser", "Hasher"]


def test_default_line(registry: Registry) -> None:
    """With no key at all, mail is parsed, hashed, marked and kept, and recipients are not asked about."""
    assert registry.chain({}) == DEFAULT_LINE.split("|") == ["HeadersParser", "Hasher", "Header", "Sql"]
    assert registry.check({}) == []
    assert GatewayConfig() == GatewayConfig(
        save_process=DEFAULT_LINE,
        validate_process="",
        save_workers_size=128,
        gw_save_timeout="30s",
        gw_val_rcpt_timeout="5s",
    )


@pytest.mark.parametrize("line", ["", "  ", "Hasher|", "|Hasher", "Hasher||Header"])
def test_missing_name(registry: Registry, line: str) -> None:
    """An empty name is an error, not passed over."""
    assert problems(registry, save_process=line) == [
        f"backend_config.save_process: a name is missing in {line!r}, meant: A|B|C"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("HeaderParser", "did you mean HeadersParser?"),
        ("hashr", "did you mean Hasher?"),
        ("fooo", "did you mean Foo?"),
        ("ofered", "did you mean Offered?"),
    ],
)
def test_unknown_name(registry: Registry, package: Package, name: str, hint: str) -> None:
    """An unknown name is an error that says what was meant, among all that there is."""
    package({"Offered": "my_offer:Offered"})
    expected = f"backend_config.save_process: unknown processor {name!r}, {hint}"
    assert problems(registry, save_process=f"Hasher|{name}") == [expected]
    for use in (registry.build, registry.chain):
        with pytest.raises(ConfigError) as raised:
            use({"save_process": name})
        assert str(raised.value) == expected


def test_unknown_name_like_no_other(registry: Registry, package: Package) -> None:
    """Where nothing looks like it, all that there is is listed: shipped, added, offered."""
    package({"Offered": "my_offer:Offered"})
    shipped = [info.name for info in Registry().describe() if info.name != "Offered"]
    [problem] = problems(registry, save_process="xyzxyz")
    known = ", ".join([*shipped, "Foo", "Offered"])
    assert problem == f"backend_config.save_process: unknown processor 'xyzxyz', known are: {known}"


def test_named_twice_is_one(registry: Registry) -> None:
    """However often a name stands in the lines, in whatever case, it is one instance."""
    line = registry.build({"save_process": "Foo|Hasher|foo", "validate_process": "FOO", "foo_dsn": "x"})
    assert [name for name, _ in line.processors] == ["Foo", "Hasher"]
    assert registry.chain({"save_process": "Foo|Hasher|foo", "foo_dsn": "x"}) == ["Foo", "Hasher", "Foo"]


def test_each_line_has_its_own(registry: Registry) -> None:
    """Two lines that are built from the same names share nothing."""
    first, second = (registry.build({"save_process": "Hasher"}).processors for _ in range(2))
    assert first[0][1] is not second[0][1]


# Where a name is looked up


def test_add_takes_the_place_of_a_shipped_one(registry: Registry) -> None:
    """An added processor goes before a shipped one, in this registry and in no other."""
    registry.add("hasher", Foo)
    assert registry.chain({"save_process": "Hasher", "foo_dsn": "x"}) == ["hasher"]
    [(_, made)] = registry.build({"save_process": "Hasher", "foo_dsn": "x"}).processors
    assert isinstance(made, Foo)
    assert Registry().chain({"save_process": "hasher"}) == ["Hasher"]


@pytest.mark.parametrize("name", ["", "a|b", "a:b", " a", "a\n"])
def test_add_bad_name(registry: Registry, name: str) -> None:
    """A name that no line can hold is refused."""
    with pytest.raises(ValueError, match="a processor's name has no"):
        registry.add(name, Foo)


@pytest.mark.parametrize(
    "factory", [None, "Foo", 5, dict, Foo(FooConfig(foo_dsn="x"))], ids=lambda each: repr(each)[:9]
)
def test_add_what_is_no_processor(registry: Registry, factory: Any) -> None:
    """What is no class of a processor, no function and no factory is refused."""
    with pytest.raises(TypeError, match=r"^'X' is .*, which is no processor$"):
        registry.add("X", factory)


def test_entry_point(registry: Registry, module: Module, package: Package) -> None:
    """What an installed package offers is found in any case, after what is shipped or added."""
    module("my_offer", "from guerrilla import Processor\nclass Offered(Processor):\n    '''Is offered.'''\n")
    package({"Offered": "my_offer:Offered", "Hasher": "my_offer:Offered", "Second": "my_offer:Offered"})
    assert registry.chain({"save_process": "offered|hasher|SECOND"}) == ["Offered", "Hasher", "Second"]
    docs = {info.name: info.doc for info in registry.describe()}
    assert docs["Offered"] == "Is offered."
    assert docs["Hasher"].startswith("Makes a key")
    assert set(docs) == {info.name for info in Registry().describe()} | {"Foo"}


def test_import_path(registry: Registry, module: Module) -> None:
    """An import path may lead into a class, and may lead to a function; its case counts, as Python's does."""
    module(
        "my_module",
        "import guerrilla\n"
        "class Out:\n    class In(guerrilla.Processor):\n        pass\n"
        "@guerrilla.processor\nasync def noting(envelope):\n    return None\n",
    )
    line = "my_module:Out.In|my_module:noting"
    assert [name for name, _ in registry.build({"save_process": line}).processors] == line.split("|")
    assert problems(registry, save_process="my_module:out.In")


@pytest.mark.parametrize(
    ("path", "cause", "meant"),
    [
        ("nowhere_at_all:X", "ModuleNotFoundError: No module named 'nowhere_at_all'", "package.module:Name"),
        ("my_module:Y", "AttributeError: module 'my_module' has no attribute 'Y'", "package.module:Name"),
        (":X", "ValueError: Empty module name", "package.module:Name"),
        ("my_raising:X", "RuntimeError: two lines", "package.module:Name"),
        ("my_exiting:X", "SystemExit: 3", "package.module:Name"),
    ],
)
def test_import_that_raises(registry: Registry, module: Module, path: str, cause: str, meant: str) -> None:
    """Whatever an import does, it is one line with the cause."""
    module("my_module", "")
    module("my_raising", "raise RuntimeError('two\\n  lines')")
    module("my_exiting", "import sys\nsys.exit(3)")
    assert problems(registry, save_process=path) == [
        f"backend_config.save_process: cannot import {path!r}: {cause}, meant: {meant}"
    ]


def test_import_of_what_is_no_processor(registry: Registry) -> None:
    """An import path that leads to something else says to what."""
    [problem] = problems(registry, save_process="json:JSONDecoder")
    assert problem.startswith("backend_config.save_process: 'json:JSONDecoder' is <class 'json.")
    assert problem.endswith("which is no processor, " + MEANT)


def test_a_package_that_cannot_be_imported(registry: Registry, package: Package) -> None:
    """One broken package is told of where it is asked for, and spoils nothing else."""
    package({"Broken": "nowhere_at_all:X"})
    [broken] = [info for info in registry.describe() if info.name == "Broken"]
    assert broken.doc == "cannot import 'nowhere_at_all:X': ModuleNotFoundError: No module named 'nowhere_at_all'"
    assert problems(registry, foo_dsn="x") == ["warning: backend_config.foo_dsn: nothing in this line reads this key"]


# What a name may stand for

MEANT = "meant: a Processor class, a @processor function, or a function that returns a decorator"


async def test_a_factory_that_makes_a_processor(running: Start) -> None:
    """A function that returns a processor made by hand is one more way: it has its life too."""
    diary: list[str] = []

    class Noting(Processor[FooConfig]):
        async def initialize(self) -> None:
            diary.append(f"initialize {self.config.foo_dsn}")

        async def save_mail(self, envelope: Envelope, call_next: CallNext) -> Reply:
            return OK

    gateway = await running("Noting", Noting=lambda: Noting(FooConfig(foo_dsn="mine")))
    assert await gateway.process(Envelope()) is OK
    assert diary == ["initialize mine"]


def test_bare_factory_has_no_life(registry: Registry) -> None:
    """A bare decorator factory is called once for a line, and has nothing to initialize."""
    made: list[Decorator] = []

    def factory() -> Decorator:
        made.append(lambda following: following)
        return made[-1]

    registry.add("Bare", factory)
    line = registry.build({"save_process": "Bare|Hasher|Bare", "validate_process": "Bare"})
    assert [name for name, _ in line.processors] == ["Hasher"]
    assert len(made) == 1


async def forgotten(envelope: Envelope) -> None:
    """Lacks its @processor."""


class Unmade(Processor[ProcessorConfig]):
    def __init__(self, config: ProcessorConfig) -> None:
        raise ImportError("no driver")


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        (forgotten, "TypeError: forgotten() missing 1 required positional argument: 'envelope'"),
        (lambda: None, "TypeError: it returned None"),
        (Unmade, "ImportError: no driver"),
    ],
)
def test_what_cannot_be_made(registry: Registry, factory: Any, cause: str) -> None:
    """What fails when it is made is an error of the configuration, with its cause and what was meant."""
    registry.add("X", factory)
    with pytest.raises(ConfigError) as raised:
        registry.build({"save_process": "Hasher|x"})
    assert str(raised.value) == f"backend_config: X cannot be made: {cause}, {MEANT}"


def test_describe(registry: Registry) -> None:
    """Each processor is told of with what it does and the type of its keys."""

    @processor
    def function(envelope: Envelope) -> None:
        """Does nothing."""

    def bare() -> Decorator:
        raise AssertionError("it is only made when a line is built")

    registry.add("Function", function)
    registry.add("Bare", bare)
    infos = {info.name: info for info in registry.describe()}
    assert (infos["Foo"].doc, infos["Foo"].config_type) == ("Does foo.", FooConfig)
    assert (infos["Function"].doc, infos["Function"].config_type) == ("Does nothing.", ProcessorConfig)
    assert (infos["Bare"].doc, infos["Bare"].config_type) == ("", ProcessorConfig)
    assert all(info.doc for name, info in infos.items() if name != "Bare")


# Keys


def test_config_reaches_the_processor(registry: Registry) -> None:
    """A processor is given its own keys, with their defaults, and no others."""
    line = registry.build({"save_process": "Foo", "foo_dsn": "x", "gw_save_timeout": "1m30s"})
    [(_, made)] = line.processors
    assert made.config == FooConfig(foo_dsn="x", foo_size=1)
    assert line.config.gw_save_timeout == 90.0


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("foo_size", "1", 'found "1", meant: a whole number'),
        ("foo_size", True, "found true, meant: a whole number"),
        ("foo_dsn", "", 'found "", meant: 1 characters or more'),
        ("save_process", 5, "found 5, meant: text, in double quotes"),
        ("validate_process", ["Foo"], 'found ["Foo"], meant: text, in double quotes'),
        ("save_workers_size", 0, "found 0, meant: 1 or more"),
        ("save_workers_size", 1.5, "found 1.5, meant: a whole number"),
        ("gw_save_timeout", 30, 'found 30, meant: a duration such as "10s"'),
        ("gw_val_rcpt_timeout", "5", 'found "5", meant: a duration such as "10s"'),
        ("foo_sise", 1, "unknown key, did you mean foo_size?"),
        ("FOO_SIZE", 1, "unknown key, did you mean foo_size?"),
        ("save_proces", "Foo", "unknown key, did you mean save_process?"),
        ("zzz", 1, "unknown key"),
    ],
)
def test_wrong_key(registry: Registry, key: str, value: object, problem: str) -> None:
    """A wrong value or key is an error with its place, what was found, and what was meant."""
    config: dict[str, Any] = {"save_process": "HeadersParser|Foo|Sql", "foo_dsn": "x", key: value}
    if key == "save_process":  # then nothing reads it
        del config["foo_dsn"]
    expected = f"backend_config.{key}: {problem}"
    assert problems(registry, **config) == [expected]
    for use in (registry.build, registry.chain):
        with pytest.raises(ConfigError) as raised:
            use(config)
        assert str(raised.value) == expected


@pytest.mark.parametrize("key", ["gw_save_timeout", "gw_val_rcpt_timeout"])
def test_no_time_at_all(registry: Registry, key: str) -> None:
    """A time limit of nothing is refused."""
    [problem] = registry.check({key: "0s"})
    assert (problem.place, problem.warning) == (f"backend_config.{key}", False)


def test_missing_key(registry: Registry) -> None:
    """A key that a processor of the line needs is asked for, once."""
    assert problems(registry, save_process="Foo|Foo", validate_process="foo") == [
        "backend_config.foo_dsn: this key is missing"
    ]


def test_key_of_another_processor(registry: Registry) -> None:
    """A key that only another processor reads, ours or the Go program's, is a warning, and does not hinder."""
    config = {"save_process": "Hasher", "foo_dsn": "x", "sql_driver": "sqlite", "maildir_path": "/"}
    assert problems(registry, **config) == [
        f"warning: backend_config.{key}: nothing in this line reads this key"
        for key in ("foo_dsn", "sql_driver", "maildir_path")
    ]
    assert registry.build(config).config.save_process == "Hasher"


def test_key_of_a_fork_of_the_go_program(registry: Registry) -> None:
    """A key that no processor reads any more is a warning, too, and says what can be meant."""
    assert problems(registry, save_process="Hasher", local_storage_path="/mail") == [
        "warning: backend_config.local_storage_path: nothing in this line reads this key, "
        "meant: maildir_path, and MailDir in save_process"
    ]


def test_key_with_another_name(registry: Registry) -> None:
    """A processor's key may have a name in the file that is none in Python."""

    class OddConfig(ProcessorConfig):
        odd_class: str = Field(alias="odd-class")

    class Odd(Processor[OddConfig]):
        pass

    registry.add("Odd", Odd)
    [(_, made)] = registry.build({"save_process": "Odd", "odd-class": "x"}).processors
    assert made.config.odd_class == "x"
    assert problems(registry, save_process="Odd", odd_class="x") == [
        "backend_config.odd-class: this key is missing",
        "backend_config.odd_class: unknown key, did you mean odd-class?",
    ]


def test_all_at_once(registry: Registry) -> None:
    """All that is wrong is told at once: names, values, missing and unknown keys, warnings too."""
    config = {
        "save_process": "Hashr|Foo|",
        "validate_process": "nowhere_at_all:X|Foo",
        "save_workers_size": "many",
        "foo_size": None,
        "fooo_dsn": "x",
        "redis_interface": "127.0.0.1:6379",
    }
    expected = [
        'backend_config.save_workers_size: found "many", meant: a whole number',
        "backend_config.save_process: unknown processor 'Hashr', did you mean Hasher?",
        "backend_config.save_process: a name is missing in 'Hashr|Foo|', meant: A|B|C",
        "backend_config.validate_process: cannot import 'nowhere_at_all:X': ModuleNotFoundError: "
        "No module named 'nowhere_at_all', meant: package.module:Name",
        "backend_config.foo_dsn: this key is missing",
        "backend_config.foo_size: found null, meant: a whole number",
        "backend_config.fooo_dsn: unknown key, did you mean foo_dsn?",
        "warning: backend_config.redis_interface: nothing in this line reads this key",
    ]
    assert problems(registry, **config) == expected
    with pytest.raises(ConfigError) as raised:
        registry.build(config)
    assert str(raised.value).split("\n") == expected


def test_the_example_of_the_go_program() -> None:
    """Its backend_config loads unchanged but for the processors that are not there yet; what is left is warnings."""
    registry = Registry()
    unread = ["mysql_db", "mysql_host", "mysql_pass", "mysql_user", "redis_interface", "redis_expire_seconds"]
    config = SEED | {"save_process": "HeadersParser|Debugger|Hasher|Header|Compressor|Sql"}
    assert problems(registry, **config) == [
        f"warning: backend_config.{key}: nothing in this line reads this key" for key in unread
    ]
    line = registry.build(config)
    assert line.config.save_workers_size == 1
    assert [name for name, _ in line.processors] == config["save_process"].split("|")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [*GatewayConfig.model_fields, *FooConfig.model_fields, "sql_dsn", "mail_table", "compress_level", "mysql_db"]
)
LINES = st.lists(st.sampled_from(["Foo", "sql", "Hasher", "compressor", "nope", "", " ", ":", "json:x"])).map("|".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.dictionaries(KEYS | st.text(max_size=10), JSON | LINES, max_size=6))
def test_check_never_raises(registry: Registry, config: dict[str, Any]) -> None:
    """Whatever stands in backend_config, check says what is wrong with it; build raises ConfigError or builds."""
    wrong = [problem for problem in registry.check(config) if not problem.warning]
    assert all(str(problem).startswith("backend_config.") for problem in wrong)
    if wrong:
        with pytest.raises(ConfigError):
            registry.build(config)
    else:
        registry.build(config)
