"""Loads and unloads models and profiles by the protocol's names for them."""

from collections.abc import Callable

from damoserve_server.errors import ModelNotFound, ProfileLoading
from damoserve_server.kserve.targets import split_name
from damoserve_server.lifecycle.lifecycle import Lifecycle
from damoserve_server.models.catalogue import MAX_SHOWN


class LifecycleAdministration:
    """Changes what is served. A model's name stands for all of its profiles, `model/profile` for one of them."""

    def __init__(self, lifecycle: Callable[[], Lifecycle | None]) -> None:
        """`lifecycle` returns None as long as the models are being loaded."""
        self._get_lifecycle = lifecycle

    async def load(self, name: str) -> None:
        model, profile = split_name(name)
        if profile is None:
            await self._require_lifecycle().reload(model, whole=True)
        else:
            await self._require_lifecycle().load_profile(model, profile)

    async def unload(self, name: str) -> None:
        model, profile = split_name(name)
        if not model:
            raise ModelNotFound(name[:MAX_SHOWN], "the model to be unloaded has to be named")
        lifecycle = self._require_lifecycle()
        names = [active.name for active in lifecycle.catalogue.model(model).active]
        for profile_name in names if profile is None else [profile]:
            await lifecycle.unload_profile(model, profile_name)

    def _require_lifecycle(self) -> Lifecycle:
        lifecycle = self._get_lifecycle()
        if lifecycle is None:
            raise ProfileLoading("the models are still being loaded; try again later")
        return lifecycle
