from types import ModuleType

import damoserve_client


def test_all_names_what_is_public() -> None:
    public = {
        name
        for name, value in vars(damoserve_client).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(damoserve_client.__all__) == public
    assert len(damoserve_client.__all__) == len(public)
