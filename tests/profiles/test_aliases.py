"""Which version is to be served, and what can be seen of a model without reading it."""

import os
from pathlib import Path

import pytest

from damoserve_profiles.repository import ALIASES_FILE, SERVING, AliasesInvalid, Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    for version in (1, 2, 10):
        folder = tmp_path / "cells" / str(version) / "fp32"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"x")
    return Repository(tmp_path)


def test_the_newest_serves_unless_an_alias_says_otherwise(repository: Repository) -> None:
    assert repository.serving("cells") == 10
    repository.set_alias("cells", "stable", 1)
    assert repository.serving("cells") == 10
    repository.set_alias("cells", SERVING, 2)
    assert repository.serving("cells") == 2
    assert repository.aliases("cells") == {"serving": 2, "stable": 1}
    repository.set_alias("cells", SERVING, None)
    assert repository.serving("cells") == 10
    assert repository.aliases("cells") == {"stable": 1}


@pytest.mark.parametrize("text", ["", "[]", '{"serving": "newest"}', '{"serving": 0}', '{"serving": 3}', '{"..": {}}'])
def test_invalid_aliases_are_told(repository: Repository, text: str) -> None:
    (repository.root / "cells" / ALIASES_FILE).write_text(text)
    with pytest.raises(AliasesInvalid, match=r"aliases\.json"):
        repository.serving("cells")
    snapshot = repository.snapshot("cells")
    assert snapshot is not None
    assert snapshot.version is None


def test_a_look_shows_every_change_of_what_is_served(repository: Repository) -> None:
    model = repository.root / "cells" / "10" / "fp32" / "model.onnx"
    looks = [repository.snapshot("cells")]
    assert repository.snapshot("cells") == looks[0]
    os.utime(model, ns=(1, 1))
    looks.append(repository.snapshot("cells"))
    model.write_bytes(b"longer")
    looks.append(repository.snapshot("cells"))
    (model.parent / "more").touch()
    looks.append(repository.snapshot("cells"))
    repository.set_alias("cells", SERVING, 2)
    looks.append(repository.snapshot("cells"))
    assert len(set(looks)) == len(looks)


def test_a_look_ignores_what_is_not_served(repository: Repository) -> None:
    before = repository.snapshot("cells")
    (repository.root / "cells" / "2" / "fp32" / "model.onnx").write_bytes(b"longer")
    repository.set_alias("cells", "stable", 1)
    assert repository.snapshot("cells") == before
    assert repository.snapshot("birds") is None
