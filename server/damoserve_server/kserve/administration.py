"""Loading and unloading by the protocol's own methods."""

from collections.abc import Callable

from damoserve_server.errors import ModelNotFound, ProfileLoading
from damoserve_server.kserve.targets import split
from damoserve_server.lifecycle.lifecycle import Lifecycle
from damoserve_server.models.catalogue import MAX_SHOWN


class LifecycleAdministration:
    """A model's name means all of its profiles; `model/profile` one of them. Nothing is unloaded that is not named."""

    def __init__(self, lifecycle: Callable[[], Lifecycle | None]) -> None:
        """`lifecycle` gives None as long as the models are being loaded."""
        self._find = lifecycle

    async def load(self, name: str) -> None:
        model, profile = split(name)
        if profile is None:
            await self._lifecycle().reload(model, whole=True)
        else:
            await self._lifecycle().load_profile(model, profile)

    async def unload(self, name: str) -> None:
        model, profile = split(name)
        if not model:
            raise ModelNotFound(name[:MAX_SHOWN], "the model to be unloaded has to be named")
        lifecycle = self._lifecycle()
        active = [found.name for found in lifecycle.catalogue.model(model).active]
        for each in active if profile is None else [profile]:
            await lifecycle.unload_profile(model, each)

    def _lifecycle(self) -> Lifecycle:
        found = self._find()
        if found is None:
            raise ProfileLoading("the models are still being loaded; try again later")
        return found
