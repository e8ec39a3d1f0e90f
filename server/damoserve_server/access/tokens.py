"""Reads the file of tokens, and finds the holder of a token. No error and no line of the log repeats a token."""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from damoserve_server.access.limits import Allowance, Clock, Limits
from damoserve_server.access.reloading import Reloading

T = TypeVar("T")

SHORTEST_TOKEN = 32
"""Least length of a token, in characters: 128 bits in hexadecimal. Shorter ones could be guessed from their digest."""


class Right(StrEnum):
    """The rights that a token may have. Neither includes the other."""

    DETECT = "detect"
    """May have objects detected, and see the profiles."""
    ADMIN = "admin"
    """May change what the server serves."""


class Entry(BaseModel):
    """One token of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """The name that stands for the token in the log and in errors."""
    token: SecretStr | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The digest of the token, given instead of it so that the file holds no secret."""
    rights: Annotated[frozenset[Right], Field(min_length=1)] = frozenset({Right.DETECT})
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Calls a second; with a burst and a concurrency, see `Limits`."""
    burst: Annotated[int, Field(gt=0)] | None = None
    concurrency: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.token is None) == (self.sha256 is None):
            raise ValueError("needs either token or sha256")
        if self.token is not None and len(self.token.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(f"token must have at least {SHORTEST_TOKEN} characters, made at random")
        if self.burst and not self.rate:
            raise ValueError("burst needs a rate")
        return self

    @property
    def digest(self) -> bytes:
        if self.token is not None:
            return digest_of(self.token.get_secret_value())
        return bytes.fromhex(self.sha256 or "")

    @property
    def limits(self) -> Limits:
        return Limits(self.rate, self.burst, self.concurrency)


class TokenFile(BaseModel):
    """The content of a file of tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    tokens: tuple[Entry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.tokens:
            raise ValueError("the list of tokens is empty")
        if twice := _repeated(entry.name for entry in self.tokens):
            raise ValueError(f"two tokens have the name {twice}")
        if same := _repeated(entry.digest for entry in self.tokens):
            names = " and ".join(entry.name for entry in self.tokens if entry.digest == same)
            raise ValueError(f"{names} have the same token")
        return self


def _repeated(values: Iterable[T]) -> T | None:
    earlier = set()
    for value in values:
        if value in earlier:
            return value
        earlier.add(value)
    return None


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> tuple[Entry, ...]:
    """Reads a file of tokens. Raises ValueError, which says what is wrong and where, but not the text there."""
    try:
        content = yaml.safe_load(path.read_bytes())
        return TokenFile.model_validate(content).tokens
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not YAML{where}") from None
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(_shown, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
        raise ValueError(f"{path}: {mistakes}") from None


def _shown(part: int | str) -> str:
    """Returns a part of a path in the file for a message, but no long one: it may be a token in the wrong place."""
    return str(part) if len(str(part)) < SHORTEST_TOKEN else "(a long name)"


@dataclass(frozen=True)
class Holder:
    """Someone who may call: the name of a token, its digest, its rights, and what is left of its limits."""

    name: str
    digest: bytes
    rights: frozenset[Right]
    allowance: Allowance


class Tokens:
    """The tokens of a file, which may be replaced at any time: the next call sees the new ones."""

    def __init__(self, path: Path, report: Callable[[bool], None], clock: Clock = time.monotonic) -> None:
        """`report` is called at every change of the file, with whether it was accepted. Raises ValueError."""
        self._path = path
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}
        self._holders = Reloading([path], self._read, report)

    def find(self, token: str) -> Holder | None:
        # Every digest is compared, each in constant time: how long it takes says nothing about any of them.
        digest = digest_of(token)
        match = None
        for holder in self._holders.current():
            if hmac.compare_digest(holder.digest, digest):
                match = holder
        return match

    def _read(self) -> list[Holder]:
        holders = [self._holder(entry) for entry in read_tokens(self._path)]
        self._allowances = {holder.name: holder.allowance for holder in holders}
        return holders

    def _holder(self, entry: Entry) -> Holder:
        allowance = self._allowances.get(entry.name)
        if allowance is None or allowance.limits != entry.limits:
            allowance = Allowance(entry.name, entry.limits, self._clock)
        return Holder(entry.name, entry.digest, entry.rights, allowance)
