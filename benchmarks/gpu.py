"""T at 640 pixels on an NVIDIA GPU: time of every batch size in ONNX Runtime and in TensorRT, and the tests there.

    python benchmarks/gpu.py write graphs                      # with the extra compress; no GPU needed
    python benchmarks/gpu.py run graphs --json gpu.json        # with the extras gpu and dev, on the GPU

The weights are the bundled T's, trained at 416 pixels; speed does not depend on that, and accuracy is not looked at.
Two steps, because the two extras bring different packages of ONNX Runtime. `--no-tests` leaves out the tests of the
marker `gpu`.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size, decode, resize
from damoserve_profiles.manifest import MODEL_FILE, Accuracy, InputSpec, Latency, Manifest, Source, Thresholds
from damoserve_profiles.recipe import Quantise, Recipe
from damoserve_profiles.repository import Repository, describe_file

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "profiles" / "checkpoints" / "blood-cells.safetensors"
PICTURE = ROOT / "docs" / "images" / "smear.jpg"
SIZE = Size(640, 640)
BATCHES = (1, 2, 4, 8, 16)
RECIPES = {
    "fp32": Recipe(name="fp32"),
    "fp16": Recipe(name="fp16", target="gpu"),
    "int8": Recipe(name="int8", target="gpu", quantise=Quantise(calibration_images=16)),
}
ON_CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
ENGINES: dict[str, dict[str, Any]] = {
    "onnxruntime cuda": {"engine": "onnxruntime", "providers": ON_CUDA},
    "onnxruntime tensorrt": {"engine": "onnxruntime", "providers": ("TensorrtExecutionProvider", *ON_CUDA)},
    "tensorrt": {"engine": "tensorrt"},
}
PACKAGES = ("onnxruntime-gpu", "tensorrt", "cuda-bindings", "numpy")

app = typer.Typer(add_completion=False)


@app.command()
def write(folder: Path) -> None:
    """Write the graphs and their manifests."""
    from damoserve_compress.network.checkpoint import load_checkpoint
    from damoserve_compress.targets import TARGETS

    network, described = load_checkpoint(CHECKPOINT)
    network = network.eval()
    for name, recipe in RECIPES.items():
        profile = Repository(folder).folder("T", 1, name)
        profile.path.mkdir(parents=True, exist_ok=True)
        steps = TARGETS[recipe.target]
        steps.export(steps.adapt(network, recipe.export), SIZE, recipe.export, profile.model_path)
        if recipe.quantise is not None:
            images = partial(_views, recipe.quantise.calibration_images)
            steps.quantise(profile.model_path, profile.model_path, images, recipe.quantise)
        assert steps.finish is not None
        steps.finish(profile.model_path, profile.model_path)
        profile.write(_manifest(recipe, profile.model_path, described.labels))
        typer.echo(f"{profile.model_path}: {profile.model_path.stat().st_size / 1e6:.1f} MB")


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(exists=True)],
    cache: Annotated[Path, typer.Option(help="Where engines are kept; empty for the cold start.")] = Path("gpu-cache"),
    rounds: Annotated[int, typer.Option(min=2, help="Timed runs of every batch size.")] = 100,
    tests: Annotated[bool, typer.Option(help="Run the tests that need a GPU too.")] = True,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Time the graphs in every engine."""
    from damoserve_server.engines.cuda import describe_device

    figures: dict[str, Any] = {"device": asdict(describe_device(0))}
    figures["versions"] = {package: version(package) for package in PACKAGES}
    if tests:
        figures["tests"] = _run_tests()
    figures["profiles"] = list(_time_all(folder, cache, rounds))
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def _time_all(folder: Path, cache: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for every profile in every engine; why, where the engine refuses it."""
    from damoserve_server.engines.choice import load_engine
    from damoserve_server.engines.engine import EngineError, EngineOptions, GpuOptions, close_engine
    from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine

    images = np.stack(_views(max(BATCHES)))
    for name in RECIPES:
        profile = Repository(folder).folder("T", 1, name)
        model, manifest = profile.model_path.read_bytes(), profile.verify()
        reference = OnnxRuntimeEngine(model, manifest, EngineOptions(1)).run(images[:1])[0]
        for title, chosen in ENGINES.items():
            row: dict[str, Any] = {"profile": name, "engine": title}
            options = EngineOptions(max(BATCHES), gpu=GpuOptions(cache=cache), **chosen)
            try:
                for start in ("first_start_s", "second_start_s"):  # what is not in the cache yet, and what is
                    started = time.perf_counter()
                    engine = load_engine(model, manifest, options)
                    engine.run(images)
                    row[start] = round(time.perf_counter() - started, 1)
                    if start == "first_start_s":
                        close_engine(engine)
                        del engine
                found = engine.run(images[:1])[0]
                row["score_difference"] = float(np.abs(_ranked(found) - _ranked(reference)).max())
                row["batches"] = {count: _time(engine.run, images[:count], rounds) for count in BATCHES}
                close_engine(engine)
            except EngineError as error:
                row["refused"] = str(error)
            typer.echo(json.dumps(row))
            yield row


def _time(run: Any, images: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """Milliseconds of a batch from pageable images to outputs on the host, and the images a second that this makes."""
    run(images)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - started)
    median, p90 = statistics.median(seconds), statistics.quantiles(seconds, n=10)[-1]
    return {
        "median_ms": round(median * 1e3, 3),
        "p90_ms": round(p90 * 1e3, 3),
        "images_per_s": round(len(images) / median, 1),
    }


def _ranked(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The best score of every candidate, by size: which of two nearly equal anchors comes first is no difference."""
    return np.sort(scores.max(2), axis=1)


def _run_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/server/test_engines.py"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    typer.echo(result.stdout)
    return {"exit_code": result.returncode, "summary": result.stdout.strip().splitlines()[-1:]}


def _views(count: int) -> list[NDArray[np.uint8]]:
    """A picture of blood cells, shifted."""
    picture = resize(decode(PICTURE.read_bytes()), SIZE, "stretch")
    return [np.ascontiguousarray(np.roll(picture, 17 * index, (0, 1))) for index in range(count)]


def _manifest(recipe: Recipe, path: Path, labels: Sequence[str]) -> Manifest:
    return Manifest(
        model="T",
        version=1,
        profile=recipe.name,
        variant="T",
        labels=tuple(labels),
        input=InputSpec(width=SIZE.width, height=SIZE.height),
        candidates=recipe.export.candidates,
        thresholds=Thresholds(score=0.5, nms_iou=0.7, max_detections=100),
        parameters=0,
        macs=0,
        accuracy=Accuracy(dataset="none", images=0, ap=0, ap50=0, per_class={}),
        latency=Latency(median_ms=1, p90_ms=1, runs=1, threads=1, cpu="none", instruction_set="none", runtime="none"),
        recipe=recipe,
        source=Source(checkpoint=CHECKPOINT.name, sha256=describe_file(CHECKPOINT).sha256),
        files={MODEL_FILE: describe_file(path)},
    )


if __name__ == "__main__":
    app()
