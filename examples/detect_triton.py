"""Finds the objects in several pictures with Triton's client: the port speaks KServe v2 as well.

    damoserve serve &
    pip install 'tritonclient<2.70' packaging
    python examples/detect_triton.py docs/images/smear.jpg

What a request can say beside its pictures, and what stands in the answer: docs/kserve.md.
"""

from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
import typer


def main(images: list[Path], model: str = "blood-cells", address: str = "127.0.0.1:50051") -> None:
    # Whole files, as they are: the server decodes them, and they travel far cheaper than pixels.
    files = triton.InferInput("images", [len(images)], "BYTES")
    files.set_data_from_numpy(np.array([image.read_bytes() for image in images], np.object_))
    with triton.InferenceServerClient(address) as client:
        # `blood-cells/int8` would name a profile; a tier leaves the choice to the server.
        result = client.infer(model, [files], parameters={"latency_tier": "balanced"})

    counts, names, scores = (result.as_numpy(name) for name in ("count", "label_names", "scores"))
    for row, image in enumerate(images):
        # Tensors are rectangular: rows are padded to the picture with the most objects.
        found = zip(names[row, : counts[row]], scores[row, : counts[row]], strict=True)
        typer.echo(f"{image}: " + ", ".join(f"{name.decode()} {score:.2f}" for name, score in found))
    typer.echo(f"by {result.get_response().parameters['profile'].string_param}")


if __name__ == "__main__":
    typer.run(main)
