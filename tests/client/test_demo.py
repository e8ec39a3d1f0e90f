import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from damoserve_client import demo

FAKE_SERVER = (sys.executable, str(Path(__file__).parents[1] / "support/fake_server.py"))


def test_every_active_profile_and_every_tier_is_shown_and_the_server_stopped(
    smear_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    farewell = tmp_path / "farewell"
    demo.run(smear_file, tmp_path / "demo", (*FAKE_SERVER, "--farewell", str(farewell)))
    assert farewell.exists()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for profile in ("fp32", "int8"):
        assert [profile, "2", "RBC,", "1", "WBC", "0.625", "2.5", "1.0", "2.0", "30.0", "4.0", "38.0"] in rows
    for tier, profile in (("realtime", "int8"), ("balanced", "fp32"), ("accurate", "fp32")):
        assert [tier, profile, "most", "accurate", "in", "time", "38.0"] in rows
    assert [row for row in rows if "pruned" in row] == [["pruned", "failed:", "wrong", "hash"]]
    with Image.open(tmp_path / "demo" / "profiles.png") as sheet:
        assert sheet.width > 2 * 200
        assert sheet.height > 150


def test_the_server_does_not_take_the_settings_of_the_shell(
    smear_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DAMOSERVE_HOST", "DAMOSERVE_TIERS__REALTIME__OBJECTIVE_MS", "damoserve_config", "NOT_DAMOSERVE_HOST"):
        monkeypatch.setenv(name, "x")
    farewell = tmp_path / "farewell"
    demo.run(smear_file, tmp_path / "demo", (*FAKE_SERVER, "--farewell", str(farewell)))
    names = farewell.read_text().splitlines()
    assert [name for name in names if "damoserve" in name.lower()] == ["NOT_DAMOSERVE_HOST"]


def test_on_sigterm_the_server_is_stopped_first(smear_file: Path, tmp_path: Path) -> None:
    farewell = tmp_path / "farewell"

    def ours(*_: object) -> None:
        """Where the demo has no handler, the signal must not end the tests."""

    previous = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(SystemExit) as ended:
            demo.run(smear_file, tmp_path / "demo", (*FAKE_SERVER, "--terminate-parent", "--farewell", str(farewell)))
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert ended.value.code == 143
    assert farewell.exists()


def test_a_server_that_ends_shows_its_log(smear_file: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-c", "print('first'); import a_module_that_is_not_installed")
    with pytest.raises(demo.ServerDidNotStart, match="first") as raised:
        demo.run(smear_file, tmp_path, command)
    assert "a_module_that_is_not_installed" in str(raised.value)
    assert "damoserve[server,models]" in str(raised.value)
