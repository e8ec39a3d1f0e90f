"""Graphs in both runtimes, their times, and the choice between them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.export import check_batches, check_parity, export_onnx
from damoserve_compress.measure.runtime import (
    ONNX_RUNTIME,
    Runtime,
    RuntimeMissing,
    check_runtime,
    installed_engines,
    onnx_detector,
    open_detector,
    openvino_detector,
)
from damoserve_compress.measure.timing import choose_engine, summarise, time_models
from damoserve_compress.network import Network
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export
from damoserve_profiles.repository import BUNDLED, Repository
from damoserve_profiles.runtimes import openvino_core
from tests.support.compress.old_processor import old_processor

OPENVINO = Runtime("openvino")


@pytest.fixture(scope="module")
def graph(tiny_network: Network, size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(tiny_network, size, Export(candidates=50), path)
    return path


@pytest.mark.openvino
def test_openvino_computes_what_the_network_computes(
    graph: Path, tiny_network: Network, pictures: NDArray[np.uint8]
) -> None:
    detector = openvino_detector(graph)
    check_parity(detector, tiny_network, pictures)
    check_batches(detector, pictures)
    scores, boxes = detector(pictures)
    again = detector(pictures[::-1])
    assert np.array_equal(scores, again[0][::-1])  # and what was handed out before has not changed
    assert boxes.shape == (len(pictures), 50, 4)


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from damoserve_compress.measure.runtime import openvino_detector
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
first, second = (openvino_detector(Path(sys.argv[1])) for _ in range(2))
del first, second
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.openvino
def test_signals_are_handled_after_detectors_are_gone(graph: Path) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(graph)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "handled\n"


@pytest.mark.openvino
def test_bfloat16_is_rougher(graph: Path, pictures: NDArray[np.uint8]) -> None:
    rough = Runtime("openvino", "bf16")
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="does not compute in bf16"):
            open_detector(graph, rough)
        pytest.skip("this processor does not compute in bf16")
    scores, expected = (np.sort(open_detector(graph, runtime)(pictures)[0].max(2)) for runtime in (rough, OPENVINO))
    assert 1e-5 < np.abs(scores - expected).max() < 0.1


def test_without_openvino_the_message_says_what_to_install(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert installed_engines() == ("onnxruntime",)
    with pytest.raises(RuntimeMissing, match=r"install damoserve\[openvino\]"):
        open_detector(graph, OPENVINO)


def test_an_openvino_that_does_not_load_is_not_called_missing(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(RuntimeMissing, match="is installed, but does not load: No module named 'a_library_that_is_not"):
        open_detector(graph, OPENVINO)


def test_a_precision_that_the_processor_has_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    old_processor(monkeypatch)
    check_runtime(OPENVINO)
    with pytest.raises(ValueError, match="this processor does not compute in bf16"):
        check_runtime(Runtime("openvino", "bf16"))


def test_onnx_runtime_has_no_bfloat16(graph: Path) -> None:
    with pytest.raises(ValueError, match="OpenVINO does"):
        open_detector(graph, Runtime("onnxruntime", "bf16"))


@pytest.mark.openvino
def test_graphs_are_timed_in_both_runtimes(graph: Path, size: Size) -> None:
    times = time_models([graph, (graph, OPENVINO)], size, rounds=4)
    assert times.shape == (4, 2)
    assert (times > 0).all()
    assert summarise(times[:, 1], 1, OPENVINO).runtime.startswith("openvino ")
    assert summarise(times[:, 0], 1).runtime == ONNX_RUNTIME.version()


def test_the_answers_do_not_depend_on_how_a_detector_is_opened(graph: Path, pictures: NDArray[np.uint8]) -> None:
    left, right = (detector(pictures) for detector in (onnx_detector(graph), open_detector(graph, ONNX_RUNTIME)))
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("share_faster", "chosen"), [(1.0, "openvino"), (0.8, "openvino"), (0.7, "onnxruntime"), (0.0, "onnxruntime")]
)
def test_openvino_has_to_win_three_of_four_pairs(share_faster: float, chosen: str) -> None:
    reference = np.full(100, 10.0)
    other = np.where(np.arange(100) < 100 * share_faster, 8.0, 11.0)
    assert choose_engine({"onnxruntime": reference, "openvino": other}) == chosen


def test_alone_onnx_runtime_is_chosen() -> None:
    assert choose_engine({"onnxruntime": np.full(5, 10.0)}) == "onnxruntime"


@pytest.mark.openvino
def test_the_benchmark_has_a_row_for_every_engine(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    for name in ("fp32", "bf16"):
        folder = repository.folder("blood-cells", 1, name)
        shutil.copytree(BUNDLED / "blood-cells" / "1" / "fp32", folder.path)
        text = (folder.path / "manifest.json").read_text().replace('"profile": "fp32"', f'"profile": "{name}"')
        if name == "bf16":
            text = text.replace('"recipe"', '"engine": "openvino", "precision": "bf16", "recipe"')
        (folder.path / "manifest.json").write_text(text)
    result = CliRunner().invoke(app, ["benchmark", "--repository", str(tmp_path), "--rounds", "2"])
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert (result.exit_code, "does not compute in bf16" in result.output) == (1, True)
        return
    assert result.exit_code == 0, result.output
    rows = [line.split()[:2] for line in result.output.splitlines()[1:]]
    assert rows == [["fp32", "onnxruntime"], ["fp32", "openvino"], ["bf16", "openvino"]]
