"""What can be wrong with a configuration, and how it is said: the place, what was found, and what was meant.

A place is written as ``servers[0].tls.ciphers``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration or, as a warning, is probably not what was meant."""

    place: str
    """Such as ``servers[0].max_size``; empty for the configuration as a whole."""
    message: str
    """What was found."""
    hint: str = ""
    """What was meant."""
    warning: bool = False

    def __str__(self) -> str:
        """Write it on one line, without the file."""
        kind = "warning: " if self.warning else ""
        place = f"{self.place}: " if self.place else ""
        return f"{kind}{place}{self.message}{', ' if self.hint else ''}{self.hint}"


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a configuration was read from, and the line of each place in it, where known."""

    path: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def line(self, place: str) -> int | None:
        """Return the line of the place, or of the nearest thing around it that has one."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return None

    def locate(self, problem: Problem) -> str:
        """Write the problem on one line, file and line number in front, as compilers do."""
        line = self.line(problem.place)
        return f"{self.path}:{line}: {problem}" if line else f"{self.path}: {problem}"


class ConfigError(Exception):
    """The configuration cannot be used. Carries all that is wrong; ``str()`` gives one problem a line."""

    def __init__(self, problems: Iterable[Problem], source: Source | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self.problems, source)

    def __str__(self) -> str:
        """List all problems, warnings included, each with its place."""
        return "\n".join(self.source.locate(each) if self.source else str(each) for each in self.problems)


def refused(found: str, meant: str = "") -> PydanticCustomError:
    """Make the error of a validator: what was found, and what was meant."""
    return PydanticCustomError("refused", "{found}", {"found": found, "meant": meant})


def shown(value: object) -> str:
    """Write a value as it stands in the file, cut to a length that a line bears."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """Say in plain words what pydantic found wrong with the values of ``model``: found, and meant.

    ``prefix`` is the place of the values, such as ``backend_config``.
    """
    return [_problem(details, model, prefix) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel], prefix: str) -> Problem:
    place = prefix
    for step in details["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else step
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        key = str(details["loc"][-1])
        near = difflib.get_close_matches(key.lower(), _keys(model, details["loc"]), n=1)
        return Problem(place, "unknown key", f"did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return Problem(place, "this key is missing")
    if kind == "refused":
        return Problem(place, str(context["found"]), str(context["meant"]))
    # A password does not belong on a terminal or in a log.
    secret = isinstance(details["input"], str) and details["input"] and _SECRET.search(place)
    found = "found a value that is not shown" if secret else f"found {shown(details['input'])}"
    if kind == "value_error":  # what a validator of a processor says is already plain
        return Problem(place, found, str(context["error"]))
    meant = _MEANT.get(kind, details["msg"].lower()).format(**context)
    return Problem(place, found, f"meant: {meant}")


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys of the section in which the last step of the location stands."""
    for step in location[:-1]:
        if isinstance(step, str):
            annotation = model.model_fields[step].annotation
            for kind in (annotation, *get_args(annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    model = kind
    return list(model.model_fields)


_SECRET = re.compile(r"pass|dsn|redis_interface")

_MEANT = {
    "bool_type": "true or false",
    "dict_type": "an object, {{ … }}",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list, [ … ]",
    "literal_error": "{expected}",
    "model_type": "an object, {{ … }}",
    "model_attributes_type": "an object, {{ … }}",
    "string_type": "text, in double quotes",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_long": "{max_length} entries at most",
    "string_too_short": "{min_length} characters or more",
    "string_pattern_mismatch": "what matches {pattern}",
}
