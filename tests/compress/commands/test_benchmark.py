"""What the `benchmark` command says of accuracy."""

import shutil
from pathlib import Path

from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_profiles.manifest import AccuracyDifference
from damoserve_profiles.repository import BUNDLED, Repository


def test_differences_come_with_their_interval_where_it_was_measured(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    for name in ("fp32", "int8"):
        folder = repository.folder("blood-cells", 1, name)
        shutil.copytree(BUNDLED / "blood-cells" / "1" / name, folder.path)
        manifest = folder.read_manifest()
        difference = AccuracyDifference(reference="cells", ap=-0.0038, lower=-0.0085, upper=0.0025, resamples=2000)
        accuracy = manifest.accuracy.model_copy(
            update={"ap": 0.6 if name == "fp32" else 0.59, "difference": difference if name == "int8" else None}
        )
        folder.write(manifest.model_copy(update={"accuracy": accuracy}))
    result = CliRunner().invoke(app, ["benchmark", "--repository", str(tmp_path), "--rounds", "1"])
    assert result.exit_code == 0, result.output
    assert "AP 60.00 (+0.00)" in result.output
    assert "AP 59.00, -0.38 (-0.85 to +0.25) against cells" in result.output
