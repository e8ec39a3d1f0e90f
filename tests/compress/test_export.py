"""Exported graphs compute what the network computes, in both forms of the stem, for every batch size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from damoserve_compress.export import ExportError, ServedNetwork, check_batches, check_parity, export_onnx
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_compress.network import Network
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export

CANDIDATES = 40
STEMS = ("convolution", "space_to_depth")


@pytest.fixture(scope="module", params=STEMS)
def graph(
    request: pytest.FixtureRequest, tiny_network: Network, size: Size, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(tiny_network, size, Export(candidates=CANDIDATES, stem=request.param), path)
    return path


@pytest.fixture
def detector(graph: Path) -> Detector:
    return onnx_detector(graph)


def test_the_graph_equals_the_network(detector: Detector, tiny_network: Network, pictures: NDArray[np.uint8]) -> None:
    check_parity(detector, tiny_network, pictures)
    check_batches(detector, pictures)


def test_candidates_come_best_first(detector: Detector, pictures: NDArray[np.uint8]) -> None:
    scores, boxes = detector(pictures)
    assert scores.shape == (len(pictures), CANDIDATES, 3)
    assert boxes.shape == (len(pictures), CANDIDATES, 4)
    assert (np.diff(scores.max(2), axis=1) <= 0).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_size_is_taken(detector: Detector, pictures: NDArray[np.uint8], count: int) -> None:
    assert detector(pictures[:count])[0].shape[0] == count


def test_the_graph_tells_nothing_of_the_machine_it_was_made_on(graph: Path) -> None:
    model = onnx.load(graph)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["scores", "boxes"]
    assert str(Path.cwd()).encode() not in graph.read_bytes()
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_nodes_are_named_by_their_layers(graph: Path) -> None:
    names = [node.name for node in onnx.load(graph).graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("network.neck.merge_3.conv1.") for name in names)


def test_both_stems_are_exactly_the_same_function(tiny_network: Network, pictures: NDArray[np.uint8]) -> None:
    images = torch.from_numpy(pictures)
    first, second = (ServedNetwork(tiny_network, Export(candidates=CANDIDATES, stem=stem)).eval() for stem in STEMS)
    with torch.inference_mode():
        for left, right in zip(first(images), second(images), strict=True):
            assert torch.allclose(left, right, rtol=1e-4, atol=1e-3)


def test_a_graph_of_another_network_is_refused(
    detector: Detector, tiny_network: Network, pictures: NDArray[np.uint8]
) -> None:
    def shifted(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, boxes = detector(images)
        return scores, boxes + 0.5

    with pytest.raises(ExportError, match="boxes"):
        check_parity(shifted, tiny_network, pictures)


def test_a_graph_whose_batch_mixes_images_is_refused(detector: Detector, pictures: NDArray[np.uint8]) -> None:
    def mixed(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return detector(np.roll(images, 1, axis=0))

    with pytest.raises(ExportError, match="batch"):
        check_batches(mixed, pictures)
