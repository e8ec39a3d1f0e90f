"""The manifest beside every built profile: what it is, how it was made, what it measured."""

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
    """What the network takes: `images` uint8 `[N, height, width, 3]`, RGB, 0..255, and how images are brought to it."""

    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    resize: ResizeMode = "stretch"

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)


class Thresholds(_Strict):
    """How candidates become detections."""

    score: Fraction
    nms_iou: Fraction
    max_detections: Annotated[int, Field(ge=1, le=1000)]


class AccuracyDifference(_Strict):
    """Average precision against a reference on the same images, with the 95 % interval of a bootstrap over them."""

    reference: str
    ap: float
    lower: float
    upper: float
    resamples: Count


class Accuracy(_Strict):
    """COCO average precision on validation images, 0..1: under the variant's evaluation thresholds."""

    dataset: str
    images: Count
    ap: Fraction
    ap50: Fraction
    ap75: Fraction | None = None
    per_class: dict[str, float]
    per_size: dict[str, float] = {}
    """Of small, medium and large boxes by COCO's areas, those that there are."""
    difference: AccuracyDifference | None = None
    """Against the source network. Manifests of before it was measured have none of these three."""


class Agreement(_Strict):
    """How far the boxes are those of another profile, on the validation images, both at this profile's thresholds."""

    reference: str
    """The other profile, of the same version."""
    dataset: str
    images: Count
    f1: Fraction
    """2 matched / (2 matched + missing + extra) boxes: matched are those of one class with an IoU of 0.5 or more."""
    per_class: dict[str, Fraction]
    """The same of each class of which either has a box."""


class Latency(_Strict):
    """Milliseconds from the image tensor to the candidate boxes, for one image."""

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
    """Of the network that the recipe's step `prune` names, where it names one: cut before, from this checkpoint."""


class DataSource(_Strict):
    """A data set that the profile was made with: trained, cut or calibrated on."""

    name: str
    license: str | None = None
    """Its licence, in the data set's own words; None where it says nothing."""
    citation: str | None = None
    """Where it is from, or how its authors want it cited."""


MAX_VERSION = 2**31 - 1
"""The contract has 32 bits for it."""
Version = Annotated[int, Field(gt=0, le=MAX_VERSION)]


class FileRecord(_Strict):
    """One file of the profile."""

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
    """None for the reference itself, and where it was never measured."""
    latency: Latency
    """In the preferred engine."""
    engine: EngineName = "onnxruntime"
    """The preferred one: the fastest on the machine where the latency was measured."""
    latencies: dict[EngineName, Latency] = {}
    """In every engine that was measured; empty in manifests that know of one only."""
    precision: Precision | None = None
    """What float layers are computed in, if not the file's float32; only OpenVINO offers it."""
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
        return self.files[MODEL_FILE].bytes


MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
