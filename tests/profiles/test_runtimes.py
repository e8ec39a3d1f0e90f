"""What a manifest says of engines."""

from typing import Any

import pytest
from pydantic import ValidationError

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import BUNDLED, Repository


def changed(**update: Any) -> Manifest:
    manifest = Repository(BUNDLED).folder("blood-cells", 1, "int8").read_manifest()
    return Manifest.model_validate(manifest.model_dump() | update)


def test_a_manifest_of_before_there_were_engines_prefers_onnx_runtime() -> None:
    manifest = changed()
    assert (manifest.engine, manifest.latencies, manifest.precision) == ("onnxruntime", {}, None)


def test_the_latency_is_that_of_the_preferred_engine() -> None:
    slow, quick = (changed().latency.model_copy(update={"median_ms": value}) for value in (9.0, 7.0))
    both = {"onnxruntime": slow.model_dump(), "openvino": quick.model_dump()}
    manifest = changed(engine="openvino", latency=quick.model_dump(), latencies=both)
    assert manifest.latency.median_ms == 7
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    with pytest.raises(ValidationError, match="not that of the preferred engine"):
        changed(engine="openvino", latency=slow.model_dump(), latencies=both)
    with pytest.raises(ValidationError, match="not that of the preferred engine"):
        changed(engine="openvino", latencies={"onnxruntime": slow.model_dump()})


def test_a_precision_needs_the_engine_that_has_it() -> None:
    assert changed(engine="openvino", precision="bf16").precision == "bf16"
    with pytest.raises(ValidationError, match="needs the engine openvino"):
        changed(precision="bf16")
    with pytest.raises(ValidationError, match="engine"):
        changed(engine="tensorflow")
