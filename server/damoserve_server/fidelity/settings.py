"""How much is compared with the reference profile, as an operator sets it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from damoserve_profiles.recipe import Fraction


class FidelitySettings(BaseModel):
    """The fidelity monitor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Fraction = 0.0
    """Of the answers, as far as the device is idle often enough. 0: none, and nothing is loaded for it."""
    reference: str | None = None
    """Unset, and for models without an active profile of this name: the most accurate that is not compressed."""
    kept_images: Annotated[int, Field(gt=0)] = 16
    """Network inputs that wait for the device to be idle, for each input size."""
