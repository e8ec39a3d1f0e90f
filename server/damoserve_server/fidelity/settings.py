"""Settings of the fidelity monitor."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from damoserve_profiles.recipe import Fraction


class FidelitySettings(BaseModel):
    """Settings of the fidelity monitor: how many answers are compared, and with what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Fraction = 0.0
    """Share of the answers that is compared, if the device is idle often enough. For 0 nothing is loaded either."""
    reference: str | None = None
    """Name of the reference profile. Where it is unset or not active, it is the most accurate uncompressed profile."""
    kept_images: Annotated[int, Field(gt=0)] = 16
    """Most network inputs, of each size, that wait for the device to be idle."""
