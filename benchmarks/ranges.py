"""What the ways to take ranges do to a trained network in 8 bits: noise at its head and average precision.

    python benchmarks/ranges.py profiles/checkpoints/blood-cells-P.safetensors --data DATA

Calibrates on the training images but for the held-out part, and measures on that part: nothing is chosen on validation
images. The noise tells settings apart where the average precision of a few dozen images cannot.
"""

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, get_args

import onnx
import typer

from damoserve_compress.build.trained_network import TrainedNetwork, read_network
from damoserve_compress.commands.options import DataFolder, read_data
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.datasets.subset import Subset, split_selection
from damoserve_compress.export import export_onnx
from damoserve_compress.measure.bootstrap import compare
from damoserve_compress.measure.evaluate import ground_truth, predict
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_compress.quantise import Images, quantise_onnx
from damoserve_compress.quantise.graph import Graph
from damoserve_compress.quantise.observe import observe
from damoserve_compress.quantise.sensitivity import head_outputs, sqnr
from damoserve_profiles.imaging import resize
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import Export, Quantise, Ranges


def main(checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False)], data: DataFolder) -> None:
    """Quantise with every setting; print what each does."""
    train_set = CachedDataset(read_data(data)[0])
    source = read_network(checkpoint, train_set)
    calibration, held_out = split_selection(train_set)
    truth, images = ground_truth(held_out), _inputs(source, calibration)
    with TemporaryDirectory() as folder:
        exact_path, path = Path(folder) / "float.onnx", Path(folder) / "quantised.onnx"
        export_onnx(source.network, source.size, Export(stem="space_to_depth"), exact_path)
        graph = Graph(onnx.load(exact_path))
        exact = list(observe(graph.model, head_outputs(graph, graph.model), _inputs(source, held_out)()))
        reference = _detections(source, exact_path, held_out)
        for options in _settings(len(calibration)):
            quantise_onnx(exact_path, path, images, options)
            noise = sqnr(graph, onnx.load(path), exact, _inputs(source, held_out)())
            difference = compare(truth, reference, _detections(source, path, held_out))
            typer.echo(f"{_name(options):48} {noise:5.1f} dB  AP {difference.ap}")


def _settings(count: int) -> list[Quantise]:
    return [
        Quantise(calibration_images=count, ranges=ranges, bias_correction=corrected, equalise=equalised)
        for ranges, corrected, equalised in product(get_args(Ranges), (False, True), (False, True))
    ]


def _name(options: Quantise) -> str:
    steps = [name for name in ("bias_correction", "equalise") if getattr(options, name)]
    return ", ".join([options.ranges, *steps])


def _inputs(source: TrainedNetwork, dataset: Subset) -> Images:
    return lambda: (resize(dataset[index].image, source.size, source.input.resize) for index in range(len(dataset)))


def _detections(source: TrainedNetwork, path: Path, dataset: Subset) -> list[Detections]:
    return predict(onnx_detector(path), dataset, source.input, source.network.structure.evaluation)


if __name__ == "__main__":
    typer.run(main)
