"""Explains what is wrong in the settings: where it stands, and what was probably meant.

pydantic says which setting is wrong. An operator has to know, besides, in which of three places it was given: as an
option, as an environment variable or in the file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import isclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from damoserve_server.configuration.settings import Settings

PREFIX = "DAMOSERVE_"
"""The beginning of every variable of the project."""
NESTING = "__"
"""The characters between the names of a group and of a setting in it, in a variable."""
OTHERS = frozenset(
    PREFIX + name
    for name in (
        *("ADDRESS", "ADMIN_ADDRESS", "METRICS", "TOKEN"),  # the client
        "DATA",  # the tools for training and compressing
        *("CHECK_WHEEL", "OBSERVABILITY_SECONDS", "SCREENSHOTS"),  # the tests
        *("CONTAINERS", "IMAGE", "IMAGE_BUILD", "IMAGE_RUN"),  # the check of the image
    )
)
"""Variables of the project that are none of the server's settings."""
SERVICE_LINK = re.compile(PREFIX + r"(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
"""Variables that Kubernetes sets in every pod beside a service that is named `damoserve`."""
LEAST_SIMILARITY = 0.6
"""The similarity, 0 to 1, from which on a name is taken for a slip of another."""
MAX_SHOWN = 60
"""Characters of a wrong value that are repeated."""
MAX_LISTED = 8
"""Names that are listed where none is like the wrong one."""

Key = tuple[str, ...]
"""A setting by its names from the outermost on: `("tls", "key")`."""


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """Yields a warning for each variable that looks like a setting of the server and is none."""
    known = {_variable(key).removeprefix(PREFIX) for key in _keys(Settings)}
    for name in sorted(environment):
        upper = name.upper()
        suffix = upper.removeprefix(PREFIX)
        if suffix == upper or suffix in known or upper in OTHERS or SERVICE_LINK.fullmatch(upper):
            continue
        alike = get_close_matches(suffix, known, 1, LEAST_SIMILARITY)
        yield f"{name} is not a setting and has no effect" + (f": did you mean {PREFIX}{alike[0]}?" if alike else "")


def explain(
    error: ValidationError | SettingsError, options: Mapping[str, object], environment: Mapping[str, str]
) -> str:
    """Explains all that is wrong in one line. `options` are those of the command, by the names of their settings."""
    if isinstance(error, SettingsError):
        return _unreadable(error)
    sources = _Sources.read(options, environment)
    mistakes = [_Mistake.explain(details, sources) for details in error.errors()]
    meant = {mistake.meant for mistake in mistakes if mistake.meant}
    # A misspelt name is also missing; to say both would hide what is to be done.
    return "; ".join(mistake.text for mistake in mistakes if not (mistake.missing and mistake.key in meant))


def _unreadable(error: SettingsError) -> str:
    if isinstance(error.__cause__, ValueError):
        for name in Settings.model_fields:
            if f'field "{name}"' in str(error):
                return (
                    f"{_variable((name,))} is not JSON, as a setting with several values has to be: {error.__cause__}"
                )
    return " ".join(str(error).split())


@dataclass(frozen=True)
class _Sources:
    """The places where settings are given, in the order of precedence."""

    options: Mapping[str, object]
    variables: Sequence[str]
    path: object
    file: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, options: Mapping[str, object], environment: Mapping[str, str]) -> "_Sources":
        variables = [name for name in sorted(environment) if name.upper().startswith(PREFIX)]
        by_name = {name.upper(): environment[name] for name in variables}
        path = options.get("config") or by_name.get(_variable(("config",)))
        try:
            file = yaml.safe_load(Path(str(path)).read_bytes()) if path else None
        except (OSError, yaml.YAMLError):  # then that is what the error is about
            file = None
        # As pydantic does, which takes the outermost names in any case.
        outermost = {str(name).lower(): value for name, value in file.items()} if isinstance(file, dict) else {}
        return cls(options, variables, path, outermost)

    def find_place(self, key: Key) -> "_Place":
        """Returns the place where a setting was given, or the group that it is a part of."""
        if key and key[0] in self.options:
            return _Place(f"--{key[0].replace('_', '-')}")
        for length in range(len(key), 0, -1):
            name, rest = _variable(key[:length]), ".".join(key[length:])
            variables = [
                variable for variable in self.variables if f"{variable.upper()}{NESTING}".startswith(name + NESTING)
            ]
            if variables:
                return _Place(", ".join(variables) + (f": {rest}" if rest else ""), tuple(variables))
            if _has(self.file, key[:length]):
                return _Place(f"{self.path}: {'.'.join(key)}")
        return _Place(".".join(key))

    def find_places_in(self, message: str) -> str:
        """Returns the places of all settings that a message names, for a mistake that is about several."""
        named = [(word,) for word in re.findall(r"\w+", message) if word in Settings.model_fields]
        places = (self.find_place(key).text for key in dict.fromkeys(named))
        return ", ".join(place for place in places if place not in Settings.model_fields)


@dataclass(frozen=True)
class _Place:
    """A place where something was given; `variables` are its environment variables, if it was given there."""

    text: str
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Mistake:
    """One wrong setting and its explanation; `meant` is the setting whose name was probably misspelt."""

    key: Key
    text: str
    missing: bool = False
    meant: Key | None = None

    @classmethod
    def explain(cls, details: ErrorDetails, sources: _Sources) -> "_Mistake":
        key = tuple(str(part) for part in details["loc"])
        place = sources.find_place(key)
        if details["type"] == "extra_forbidden":
            meant = _nearest(key)
            return cls(key, f"{place.text} is not a setting{_advice(key, meant, place)}", meant=meant)
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] == "missing":
            return cls(key, f"{_variable(key) if place.variables else place.text}: {message}", missing=True)
        where = place.text or sources.find_places_in(message)
        value = details["input"]
        if isinstance(value, str | int | float | Path):
            shown = str(value)
            message += f" (given: {shown[:MAX_SHOWN]}{'...' if len(shown) > MAX_SHOWN else ''})"
        return cls(key, f"{where}: {message}" if where else message)


def _advice(key: Key, meant: Key | None, place: _Place) -> str:
    """Returns the end of the explanation of an unknown name: what was probably meant, or which names there are."""
    if meant is None:
        siblings = sorted(_siblings(key))
        return f"; there are {', '.join(siblings)}" if 0 < len(siblings) <= MAX_LISTED else ""
    if len(place.variables) == 1 and place.text == place.variables[0]:
        rest = place.text[len(_variable(key)) :].upper()  # of a name in the middle of a variable's
        return f": did you mean {_variable(meant)}{rest}?"
    return f": did you mean {'.'.join(meant)}?"


def _nearest(key: Key) -> Key | None:
    """Returns the setting that was probably meant: a similar name beside it, else the same name elsewhere."""
    name = key[-1].lower()
    for alike in get_close_matches(name, _siblings(key), 1, LEAST_SIMILARITY):
        return (*key[:-1], alike)
    return next((other for other in _keys(Settings) if other[-1] == name), None)


def _siblings(key: Key) -> list[str]:
    """Returns the names in the same group."""
    return [other[-1] for other in _keys(Settings) if other[:-1] == key[:-1]]


def _keys(model: type[BaseModel], outer: Key = ()) -> Iterator[Key]:
    """Yields the keys of all settings, those of groups included."""
    for name, info in model.model_fields.items():
        yield (*outer, name)
        for kind in chain([info.annotation], get_args(info.annotation)):
            if isclass(kind) and issubclass(kind, BaseModel):
                yield from _keys(kind, (*outer, name))


def _variable(key: Key) -> str:
    return PREFIX + NESTING.join(key).upper()


def _has(values: object, key: Key) -> bool:
    if not key:
        return True
    return isinstance(values, Mapping) and key[0] in values and _has(values[key[0]], key[1:])
