import os
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from damoserve_server.configuration.settings import Settings, usable_cores
from damoserve_server.scheduling.selection import Tier


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DAMOSERVE_")]:
        monkeypatch.delenv(name)


def test_options_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "damoserve.yaml"
    file.write_text("port: 1\nmax_queue: 1\nmax_batch_size: 1\ntiers:\n  realtime: {objective_ms: 20}\n")
    monkeypatch.setenv("DAMOSERVE_CONFIG", str(file))
    monkeypatch.setenv("DAMOSERVE_PORT", "2")
    monkeypatch.setenv("DAMOSERVE_MAX_QUEUE", "2")
    settings = Settings(port=3)
    assert (settings.port, settings.max_queue, settings.max_batch_size) == (3, 2, 1)
    assert settings.tiers[Tier.REALTIME].objective_ms == 20
    assert settings.tiers[Tier.ACCURATE].objective_ms == 1000


def test_one_value_of_a_tier_can_be_set_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAMOSERVE_TIERS__BALANCED__ACCURACY_FLOOR", "0.5")
    tier = Settings().tiers[Tier.BALANCED]
    assert (tier.objective_ms, tier.accuracy_floor) == (100, 0.5)


def test_an_engine_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().engine is None
    monkeypatch.setenv("DAMOSERVE_ENGINE", "openvino")
    assert Settings().engine == "openvino"


def test_other_variables_with_the_prefix_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAMOSERVE_DATA", "somewhere")
    assert Settings().default_tier is Tier.BALANCED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot: 1", "prot"),
        ("port: 70000", "port"),
        ("tiers: {realtime: {objective: 1}}", "objective"),
        ("max_image_bytes: 99999999", "max_message_bytes must be larger"),
        ("providers: []", "providers"),
        ("engine: tensorflow", "engine"),
        ("engine: openvino\nproviders: [CUDAExecutionProvider]", "leave them unset with the engine openvino"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "damoserve.yaml"
    file.write_text(content)
    with pytest.raises(ValidationError, match=message):
        Settings(config=file)


@pytest.mark.parametrize("content", [b"port: [1", b"- 1\n- 2", b"hello", b"\xff\xfe"])
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "damoserve.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"damoserve\.yaml is not a YAML file of settings"):
        Settings(config=file)


def test_a_missing_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="config"):
        Settings(config=tmp_path / "absent.yaml")


def test_cores_are_those_of_the_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    affinity = len(os.sched_getaffinity(0))
    assert usable_cores(quota) == affinity
    for content, cores in {"max 100000": affinity, "100000 100000": 1, "50000 100000": 1}.items():
        quota.write_text(content)
        assert usable_cores(quota) == cores
