"""From the names in ``save_process`` to the production line: which processors there are, and how they are configured.

A name may be a shipped processor, one that was added, one that an installed package offers in the entry-point group
``guerrilla.processors``, or an import path ``package.module:Name``. Upper and lower case are the same, and there may be
spaces around the ``|``.
"""

from __future__ import annotations

import copy
import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from guerrilla.backends.base import Decorator, Process
from guerrilla.backends.measure import measured
from guerrilla.backends.processor import Factory, FunctionProcessor, Processor, ProcessorConfig, stack
from guerrilla.config import ConfigError, Duration, Problem, problems_of
from guerrilla.counters import Counters

ENTRY_POINT_GROUP: Final = "guerrilla.processors"

_SHIPPED: Final = {
    "HeadersParser": "guerrilla.processors.headers_parser:HeadersParser",
    "Hasher": "guerrilla.processors.hasher:Hasher",
    "Header": "guerrilla.processors.header:Header",
    "Debugger": "guerrilla.processors.debugger:Debugger",
    "Compressor": "guerrilla.processors.compressor:Compressor",
    "Sql": "guerrilla.processors.sql:Sql",
    "MySql": "guerrilla.processors.mysql:MySql",
    "Redis": "guerrilla.processors.redis:Redis",
    "GuerrillaDbRedis": "guerrilla.processors.guerrilla_db_redis:GuerrillaDbRedis",
    "GuerrillaRedisDB": "guerrilla.processors.guerrilla_db_redis:GuerrillaDbRedis",
    "MailDir": "guerrilla.processors.maildir:MailDir",
    "FastCGI": "guerrilla.processors.fastcgi:FastCGI",
}
"""Import paths, so that a processor costs nothing until a line has it."""

_DEAD_KEYS: Final = {
    "process_line": "meant: save_process",
    "process_stack": "meant: save_process",
    "save_processors": "meant: save_process",
    "validate_processors": "meant: validate_process",
    "redis_mysql_batch_timeout": "meant: redis_sql_batch_timeout",
    "local_storage_path": "meant: maildir_path, and MailDir in save_process",
}
"""Keys that files of the Go program and its forks have and nothing reads: no typing errors, but perhaps not meant."""

_FACTORY_MEANT: Final = "meant: a Processor class, a @processor function, or a function that returns a decorator"

DEFAULT_LINE: Final = "HeadersParser|Hasher|Header|Sql"


class GatewayConfig(BaseModel):
    """The keys of ``backend_config`` that the gateway itself takes."""

    model_config = ProcessorConfig.model_config

    save_process: str = Field(
        default=DEFAULT_LINE,
        description="The processors that a message passes, from left to right, separated by |.",
    )
    validate_process: str = Field(
        default="",
        description="The processors that a recipient passes, in the same form; empty: recipients are not asked about.",
    )
    save_workers_size: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="How many envelopes are worked on at a time, and so how many can share one commit. Where nothing "
        "in the line waits, as where nothing is kept, each is answered at once, and this has no meaning.",
    )
    gw_save_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long a message may take to be kept, the wait for a worker included, before 451 is answered. "
        "Where nothing in the line waits, this has no meaning.",
    )
    gw_val_rcpt_timeout: Duration = Field(
        default=5.0,
        gt=0,
        description="How long the answer about a recipient may take, the wait for a worker included.",
    )


@dataclass(frozen=True, slots=True)
class ProcessorInfo:
    """What ``guerrillad processors`` shows of one."""

    name: str
    doc: str
    config_type: type[ProcessorConfig]


@dataclass(frozen=True, slots=True)
class Line:
    """A production line that is built and not yet running."""

    config: GatewayConfig
    processors: Sequence[tuple[str, Processor[Any]]]
    """Those with a life of their own, in the order in which they are named, each once however often that is."""
    save: Process
    validate: Process


class Registry:
    """The processors that names can stand for. A daemon owns one, so two daemons can know different ones."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Factory | str]] = {
            name.lower(): (name, path) for name, path in _SHIPPED.items()
        }

    def add(self, name: str, factory: Factory) -> None:
        """Let ``name`` stand for a class, a ``@processor`` function, or a function that returns a decorator.

        It takes the place of a shipped one of that name. Raises ValueError for a name that a line cannot hold, and
        TypeError for what is no processor.
        """
        if not name or "|" in name or ":" in name or name != name.strip():
            raise ValueError(f"a processor's name has no '|', no ':' and no spaces around it: {name!r}")
        self._known[name.lower()] = (name, _checked(factory, name))

    def chain(self, backend_config: Mapping[str, Any]) -> list[str]:
        """Return the names in ``save_process``, as they are written where they are defined.

        Raises ConfigError with all that is wrong.
        """
        return list(self._sound_plan(backend_config).save)

    def configurations(self, backend_config: Mapping[str, Any]) -> list[ProcessorConfig]:
        """Return what each processor of the line reads of its keys; nothing is made.

        Raises ConfigError with all that is wrong.
        """
        return [config for _, config in self._sound_plan(backend_config).made_of.values()]

    def describe(self) -> list[ProcessorInfo]:
        """Return what is known of each processor that has a name here, or in an installed package."""
        offered = {point.name.lower(): point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
        names = {**offered, **{lower: name for lower, (name, _) in self._known.items()}}
        found = []
        for name in names.values():
            try:
                factory = self._find(name)[1]
                found.append(ProcessorInfo(name, (factory.__doc__ or "").strip(), _config_type(factory)))
            except LookupError as error:
                found.append(ProcessorInfo(name, error.args[0], ProcessorConfig))
        return found

    def check(self, backend_config: Mapping[str, Any]) -> list[Problem]:
        """Return all that is wrong with ``backend_config``, and as warnings what is probably not meant."""
        return self._plan(backend_config)[1]

    def build(self, backend_config: Mapping[str, Any], counters: Counters | None = None) -> Line:
        """Make the processors that the configuration names, and stack them; ``counters`` are told how each one does.

        Raises ConfigError with all that is wrong.
        """
        plan = self._sound_plan(backend_config)
        processors: list[tuple[str, Processor[Any]]] = []
        decorators: dict[str, Decorator] = {}
        for name, (factory, config) in plan.made_of.items():
            made = _make(name, factory, config)
            if isinstance(made, Processor):
                processors.append((name, made))
                made = made.decorate
            decorators[name] = made if counters is None else measured(made, counters.processor(name))
        save, validate = (stack([decorators[name] for name in names]) for names in (plan.save, plan.validate))
        return Line(plan.config, processors, save, validate)

    def _sound_plan(self, backend_config: Mapping[str, Any]) -> _Plan:
        plan, problems = self._plan(backend_config)
        if plan is None or any(not problem.warning for problem in problems):
            raise ConfigError(problems)
        return plan

    def _plan(self, backend_config: Mapping[str, Any]) -> tuple[_Plan | None, list[Problem]]:
        config, problems = _configure(GatewayConfig, backend_config)
        save, more = self._chain(backend_config, "save_process")
        problems += more
        validate, more = self._chain(backend_config, "validate_process")
        problems += more
        read = set(GatewayConfig.model_fields)
        made_of: dict[str, tuple[Factory, ProcessorConfig]] = {}
        for name, factory in (*save, *validate):
            kind = _config_type(factory)
            read.update(_keys(kind))
            settings, more = _configure(kind, backend_config)
            problems += [problem for problem in more if problem not in problems]
            if settings is not None:
                made_of[name] = (factory, settings)
        problems += self._unread(backend_config, read)
        if config is None:
            return None, problems
        return _Plan(config, [name for name, _ in save], [name for name, _ in validate], made_of), problems

    def _chain(self, backend_config: Mapping[str, Any], key: str) -> tuple[list[tuple[str, Factory]], list[Problem]]:
        place = f"backend_config.{key}"
        default = GatewayConfig.model_fields[key].default
        text = backend_config.get(key, default)
        if not isinstance(text, str) or text == default == "":
            return [], []  # that it is no text is said where the gateway's own keys are read
        chain: list[tuple[str, Factory]] = []
        problems: list[Problem] = []
        for word in text.split("|"):
            name = word.strip()
            if not name:
                problems.append(Problem(place, f"a name is missing in {text!r}", "meant: A|B|C"))
                continue
            try:
                chain.append(self._find(name))
            except LookupError as error:
                problems.append(Problem(place, *error.args))
        return chain, problems

    def _find(self, name: str) -> tuple[str, Factory]:
        """Return the processor and its name as it is written where it is defined.

        Raises LookupError with what was found, and what was meant.
        """
        known = self._known.get(name.lower())
        if known is not None:
            written, factory = known
            return written, _load(factory) if isinstance(factory, str) else factory
        if ":" in name:
            return name, _load(name)
        offered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        for point in offered.values():
            if point.name.lower() == name.lower():
                return point.name, _load(point.value)
        names = [*(written for written, _ in self._known.values()), *offered]
        near = difflib.get_close_matches(name.lower(), [each.lower() for each in names], n=1)
        hint = next((f"did you mean {each}?" for each in names if near and each.lower() == near[0]), "")
        raise LookupError(f"unknown processor {name!r}", hint or "known are: " + ", ".join(names))

    def _unread(self, backend_config: Mapping[str, Any], read: set[str]) -> Iterator[Problem]:
        """Report each key that nobody reads: an error if nobody ever would, a warning if another processor does."""
        unread = [key for key in backend_config if key not in read]
        elsewhere = set(_DEAD_KEYS)
        for info in self.describe() if unread else ():
            elsewhere.update(_keys(info.config_type))
        for key in unread:
            place = f"backend_config.{key}"
            if key in elsewhere:
                hint = _DEAD_KEYS.get(key, "")
                yield Problem(place, "nothing in this line reads this key", hint, warning=True)
                continue
            near = difflib.get_close_matches(key.lower(), sorted(read), n=1)
            yield Problem(place, "unknown key", f"did you mean {near[0]}?" if near else "")


@dataclass(frozen=True, slots=True)
class _Plan:
    config: GatewayConfig
    save: Sequence[str]
    validate: Sequence[str]
    made_of: Mapping[str, tuple[Factory, ProcessorConfig]]


def _keys(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


def _config_type(factory: Factory) -> type[ProcessorConfig]:
    kind: type[ProcessorConfig] = getattr(factory, "config_type", ProcessorConfig)
    return kind


def _configure(kind: type[Any], backend_config: Mapping[str, Any]) -> tuple[Any | None, list[Problem]]:
    """Give a model the keys that are its own."""
    own = {key: backend_config[key] for key in _keys(kind) if key in backend_config}
    try:
        return kind.model_validate(own), []
    except ValidationError as error:
        return None, problems_of(error, kind, "backend_config")


def _load(path: str) -> Factory:
    """Import ``package.module:Name``. Raises LookupError with what was found, and what was meant."""
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        # Whatever the module does when it is imported, it is its author's to read, in one line and with its place.
        raise LookupError(f"cannot import {path!r}: {_cause(error)}", "meant: package.module:Name") from error
    try:
        return _checked(found, path)
    except TypeError as error:
        raise LookupError(str(error), _FACTORY_MEANT) from None


def _checked(factory: Any, name: str) -> Factory:
    if isinstance(factory, type):
        if issubclass(factory, Processor):
            return factory
    elif callable(factory):
        checked: Factory = factory
        return checked
    raise TypeError(f"{name!r} is {factory!r}, which is no processor")


def _make(name: str, factory: Factory, config: ProcessorConfig) -> Processor[Any] | Decorator:
    if isinstance(factory, FunctionProcessor):
        return copy.copy(factory)  # the function is everybody's; its threads are the gateway's own
    try:
        made = factory(config) if isinstance(factory, type) else factory()
        if callable(made) or isinstance(made, Processor):
            return made
        raise TypeError(f"it returned {made!r}")
    except Exception as error:
        problem = Problem("backend_config", f"{name} cannot be made: {_cause(error)}", _FACTORY_MEANT)
        raise ConfigError([problem]) from error


def _cause(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
