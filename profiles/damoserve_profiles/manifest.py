"""The manifest beside every built profile: the profile's properties, how it was made, and what it measured."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from damoserve_profiles.imaging import ResizeMode, Size
from damoserve_profiles.recipe import Fraction, Recipe
from damoserve_profiles.runtimes import EngineName, Precision

Count = Annotated[int, Field(ge=0)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class InputSpec(_Strict):
    """The network's input, `images` uint8 `[N, height, width, 3]`, RGB, 0..255, and how images are resized to it."""

    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    resize: ResizeMode = "stretch"

    @property
    def size(self) -> Size:
        """Size of the input."""
        return Size(self.width, self.height)


class Thresholds(_Strict):
    """The bounds by which candidates become detections."""

    score: Fraction
    """Least score of a detection."""
    nms_iou: Fraction
    """Intersection over union above which the box with the lesser score is suppressed, within a class."""
    max_detections: Annotated[int, Field(ge=1, le=1000)]
    """Most detections in an image."""


class AccuracyDifference(_Strict):
    """The difference to a reference in average precision, with the 95 % interval of a bootstrap over the images."""

    reference: str
    ap: float
    lower: float
    upper: float
    resamples: Count


class Accuracy(_Strict):
    """The average precision of COCO on validation images, 0..1, under the variant's evaluation thresholds."""

    dataset: str
    images: Count
    ap: Fraction
    ap50: Fraction
    ap75: Fraction | None = None
    per_class: dict[str, float]
    per_size: dict[str, float] = {}
    """Average precision of small, medium and large boxes by COCO's areas, as far as there are any."""
    difference: AccuracyDifference | None = None
    """Difference to the source network. Manifests from before it was measured lack it, `ap75` and `per_size`."""


class Agreement(_Strict):
    """The agreement of the boxes with another profile's on the validation images, both at this profile's thresholds."""

    reference: str
    """Name of the other profile, of the same version."""
    dataset: str
    images: Count
    f1: Fraction
    """2 matched / (2 matched + missing + extra) boxes; matched ones are of one class, with an IoU of 0.5 or more."""
    per_class: dict[str, Fraction]
    """F1 of each class of which either has a box."""


class Latency(_Strict):
    """The milliseconds from the image tensor to the candidate boxes, for one image."""

    median_ms: Annotated[float, Field(gt=0)]
    p90_ms: Annotated[float, Field(gt=0)]
    runs: Count
    threads: Annotated[int, Field(gt=0)]
    cpu: str
    instruction_set: str
    runtime: str


class Source(_Strict):
    """The checkpoint that the profile was made from."""

    checkpoint: str
    sha256: Sha256
    cut_sha256: Sha256 | None = None
    """Hash of the cut network that the recipe's step `prune` names, if it does; it was cut from this checkpoint."""


class DataSource(_Strict):
    """A data set that the profile was made with: trained, cut or calibrated on."""

    name: str
    license: str | None = None
    """Its licence, in the data set's own words; None where it says nothing."""
    citation: str | None = None
    """Where it is from, or how its authors want it cited."""


MAX_VERSION = 2**31 - 1
"""Largest version of a model: the contract has 32 bits for it."""
Version = Annotated[int, Field(gt=0, le=MAX_VERSION)]


class FileRecord(_Strict):
    """The size and the hash of one file of a profile."""

    bytes: Count
    sha256: Sha256


class Manifest(_Strict):
    """Everything a server, a router or a person needs to know about a profile without loading it."""

    schema_version: Literal[1] = 1
    model: FileName
    version: Version
    profile: str
    variant: str
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    input: InputSpec
    candidates: Annotated[int, Field(gt=0)]
    thresholds: Thresholds
    parameters: Count
    macs: Count
    accuracy: Accuracy
    agreement: Agreement | None = None
    """Agreement with the reference; None for the reference itself, and where it was never measured."""
    latency: Latency
    """Latency in the preferred engine."""
    engine: EngineName = "onnxruntime"
    """Name of the preferred engine: the fastest on the machine where the latency was measured."""
    latencies: dict[EngineName, Latency] = {}
    """Latency in every engine that was measured; empty in manifests that know of one only."""
    precision: Precision | None = None
    """Precision of float layers; None for the file's float32. Only OpenVINO offers another."""
    recipe: Recipe
    source: Source
    license: str | None = None
    """Of the model itself, as an SPDX expression. Manifests of before it was asked for have neither this nor `data`."""
    data: tuple[DataSource, ...] = ()
    files: dict[FileName, FileRecord]

    @model_validator(mode="after")
    def _engines_agree(self) -> Self:
        if self.precision is not None and self.engine != "openvino":
            raise ValueError(f"precision {self.precision} needs the engine openvino, not {self.engine}")
        if self.latencies and self.latencies.get(self.engine) != self.latency:
            raise ValueError(f"latency is not that of the preferred engine, {self.engine}, in latencies")
        return self

    @property
    def model_bytes(self) -> int:
        """Size of the model file, in bytes."""
        return self.files[MODEL_FILE].bytes


MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
