"""What the four profiles of any variant cost: parameters, operations, bytes and speed, without a trained network.

    python benchmarks/variants.py --variant M --size 640 --json m-640.json

Weights are random and ranges come from noise: speed and size do not depend on them, accuracy is not looked at. The cut
is uniform, by the L1 norm. Times are of one thread in ONNX Runtime, interleaved.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer

from damoserve_compress.export import export_onnx
from damoserve_compress.measure.complexity import complexity
from damoserve_compress.measure.timing import speed_up, summarise, time_models
from damoserve_compress.network import Network, build_network
from damoserve_compress.prune import cut, find_groups, uniform
from damoserve_compress.prune.amount import LARGEST_RATIO, bisect_cut
from damoserve_compress.quantise import quantise_onnx
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise

CALIBRATION_IMAGES = 2


def main(
    variant: Annotated[str, typer.Option(help="T, S, M, L, Ns, Nm, Nl, P, or a structure file.")] = "M",
    size: Annotated[int, typer.Option(help="Side of the input in pixels.")] = 640,
    macs: Annotated[float, typer.Option(help="Share of the operations that the cut leaves.")] = 0.4,
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Build, time and print the four profiles."""
    torch.manual_seed(0)
    shape = Size(size, size)
    whole = build_network(variant).eval()
    networks = {"fp32": whole, "pruned": _cut(whole, shape, macs)}
    with TemporaryDirectory() as folder:
        paths: dict[str, Path] = {}
        for name, network in networks.items():
            paths[name] = Path(folder) / f"{name}.onnx"
            export_onnx(network, shape, Export(), paths[name])
        for name, source in (("int8", "fp32"), ("int8+pruned", "pruned")):
            paths[name] = Path(folder) / f"{name}.onnx"
            export_onnx(networks[source], shape, Export(stem="space_to_depth"), paths[name])
            options = Quantise(calibration_images=CALIBRATION_IMAGES)
            quantise_onnx(paths[name], paths[name], lambda: _noise(size), options)
            networks[name] = networks[source]
        times = time_models(list(paths.values()), shape, rounds)
        rows = []
        for column, (name, path) in enumerate(paths.items()):
            parameters, operations = complexity(networks[name], shape)
            ratio = speed_up(times, column)
            latency = summarise(times[:, column], 1)
            size_bytes = path.stat().st_size
            rows.append({"profile": name, "parameters": parameters, "macs": operations, "bytes": size_bytes})
            rows[-1] |= {"speed": asdict(ratio), "latency": latency.model_dump()}
            typer.echo(
                f"{name:12} {parameters / 1e6:6.2f} M  {operations / 1e9:6.2f} GMAC  {size_bytes / 1e6:7.2f} MB"
                f"  {latency.median_ms:8.2f} ms  {ratio.median:5.2f}x ({ratio.lower:.2f} to {ratio.upper:.2f})"
            )
    if file is not None:
        file.write_text(json.dumps({"variant": variant, "size": size, "profiles": rows}, indent=1) + "\n")


def _cut(network: Network, size: Size, wanted: float) -> Network:
    groups = find_groups(network, "l1")
    _, operations = complexity(network, size)
    keep, _ = bisect_cut(
        wanted,
        lambda keep: complexity(cut(network, groups, keep), size)[1] / operations,
        lambda level: uniform(groups, level * LARGEST_RATIO, 16),
    )
    return cut(network, groups, keep).eval()


def _noise(size: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(CALIBRATION_IMAGES)]


if __name__ == "__main__":
    typer.run(main)
