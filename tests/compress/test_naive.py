"""What the usual settings give, from the bundled checkpoint to the command's table."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.export import export_onnx
from damoserve_compress.measure.runtime import installed_engines
from damoserve_compress.naive import prune_without_recovery, quantise_by_default
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export
from damoserve_profiles.repository import describe_file
from tests.support.compress.toy_training import Squares

CHECKPOINT = Path(__file__).parents[2] / "profiles" / "checkpoints" / "blood-cells.safetensors"
SIDE = 224  # half of what the network was trained at, and a quarter of the time
HAS_NNCF = importlib.util.find_spec("nncf") is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "cells.safetensors"
    network, description = load_checkpoint(CHECKPOINT)
    save_checkpoint(path, network, Description("cells", "T", description.labels, SIDE, SIDE))
    return path


@pytest.fixture(scope="module")
def rows(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the command writes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    annotations = write_coco(RenderedSmears(3, seed=1, size=(320, 240)), folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_bytes(annotations.read_bytes())
    report = folder / "results" / "report.json"
    arguments = ["naive", str(checkpoint), "--data", str(folder), "--rounds", "5", "--json", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "no recovery" in result.output
    written = json.loads(report.read_text())
    assert (written["checkpoint"], written["sha256"]) == (checkpoint.name, describe_file(checkpoint).sha256)
    rows: list[dict[str, Any]] = written["rows"]
    return rows


def named(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if name in row["name"]]


def test_the_float_graph_is_the_reference(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    assert (first["name"], first["engine"], first["difference"]) == ("float", "onnxruntime", None)
    assert first["speed"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
    assert first["metrics"]["ap"] > 0.3
    for row in rows[1:]:
        assert row["difference"]["ap"]["value"] == pytest.approx(row["metrics"]["ap"] - first["metrics"]["ap"])
        assert row["bytes"] < first["bytes"]


def test_a_cut_that_is_not_won_back_costs_most_of_the_accuracy(rows: list[dict[str, Any]]) -> None:
    [pruned] = named(rows, "no recovery")
    assert pruned["difference"]["ap"]["upper"] < -0.1


def test_default_quantisation_is_small(rows: list[dict[str, Any]]) -> None:
    [static] = named(rows, "quantize_static")
    assert static["bytes"] < rows[0]["bytes"] / 3


@pytest.mark.skipif(not HAS_NNCF, reason="needs the extra nncf")
def test_nncf_is_measured_in_every_engine(rows: list[dict[str, Any]]) -> None:
    nncf = named(rows, "NNCF")
    assert tuple(row["engine"] for row in nncf) == installed_engines()
    assert all(row["metrics"]["ap"] > rows[0]["metrics"]["ap"] - 0.1 for row in nncf)


def test_default_quantisation_has_signed_activations_and_one_scale_a_weight(
    tiny_network: Network, size: Size, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    source, target = tmp_path / "float.onnx", tmp_path / "static.onnx"
    export_onnx(tiny_network, size, Export(), source)
    quantise_by_default(source, target, pictures)
    graph = onnx.load(target).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    steps = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert steps
    assert Counter(tensors[node.input[2]].dtype.name for node in steps) == {"int8": len(steps)}
    assert all(tensors[node.input[1]].size == 1 for node in graph.node if node.op_type == "DequantizeLinear")


def test_the_cut_changes_nothing_of_what_is_left(tiny_network: Network) -> None:
    pruned = prune_without_recovery(tiny_network)
    before, after = (dict(network.named_parameters()) for network in (tiny_network, pruned))
    assert sum(p.numel() for p in after.values()) < sum(p.numel() for p in before.values())
    assert not pruned.training
    name = "backbone.block_list.0.conv.conv.weight"
    rows = {tuple(row.flatten().tolist()) for row in before[name].detach()}
    assert all(tuple(row.flatten().tolist()) in rows for row in after[name].detach())


def test_data_of_other_labels_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    annotations = write_coco(Squares(1), tmp_path)
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_bytes(annotations.read_bytes())
    result = CliRunner().invoke(app, ["naive", str(checkpoint), "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "Error: the data have labels ('light', 'red')" in result.stderr
