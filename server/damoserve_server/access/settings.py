"""The settings of access: whose calls are let in."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from damoserve_server.access.tokens import read_tokens


class AccessSettings(BaseModel):
    """The tokens that let calls in. Raises ValidationError for a file of tokens that cannot be used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Path | None = None
    """A YAML file with the tokens. Unset: whoever reaches the port may call everything."""
    open_health: bool = True
    """Lets anyone check the health, without a token."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.tokens:
            read_tokens(self.tokens)
        return self
