"""The parts of a report: what is read, matched, drawn and written."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.build.work_folder import WorkFolder
from damoserve_compress.measure.bootstrap import Difference, Interval
from damoserve_compress.measure.evaluate import Metrics
from damoserve_compress.measure.timing import Ratio
from damoserve_compress.naive import NaiveReport, NaiveRow
from damoserve_compress.prune.recover import Cut
from damoserve_compress.prune.sensitivity import StageSensitivity
from damoserve_compress.quantise import QuantisationReport
from damoserve_compress.quantise.mixed import Decision
from damoserve_compress.quantise.observe import Calibration
from damoserve_compress.quantise.report import OperatorTime, TensorRange
from damoserve_compress.quantise.sensitivity import Sensitivity
from damoserve_compress.report import article
from damoserve_compress.report.build_records import BuildRecords, read_build_records, read_naive
from damoserve_compress.report.document import (
    Code,
    Document,
    Drawing,
    Gallery,
    Paragraph,
    Photograph,
    Section,
    Table,
    slug,
)
from damoserve_compress.report.drawing import as_svg, on_white
from damoserve_compress.report.errors import ReportError
from damoserve_compress.report.html import write_html
from damoserve_compress.report.markdown import write_markdown
from damoserve_compress.report.measure import EngineTiming, MeasuredProfile, Profile, read_profiles
from damoserve_compress.report.plots import Point, pareto_plot, points, speed_plot
from damoserve_compress.report.provenance import pruning, quantisation, repeat
from damoserve_compress.report.results import naive_settings, overview
from damoserve_compress.report.samples import SAME_IOU, unmatched
from damoserve_profiles.manifest import AccuracyDifference, Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import FineTune, Prune
from damoserve_profiles.repository import BUNDLED, Repository

QUANTISED = QuantisationReport(
    calibration=Calibration(12, "c0ffee" + 58 * "0"),
    instruction_set="avx512_vnni",
    reduce_range=True,
    operators="conv",
    operator_times=(OperatorTime("all", 3.25), OperatorTime("conv", 2.75)),
    tensors=(TensorRange("a", 0.0, 1.0, "mse", 1e-4), TensorRange("b", 0.0, 1.0, "minmax", 1e-4)),
    bias_shifts={"stem": 0.01},
    sensitivity=(Sensitivity("stem", 20.5, 0.61), Sensitivity("head", 31.5)),
    float_ap=0.7,
    ap=0.695,
    decisions=(Decision("stem", 0.68, 0.695, True), Decision("head", 0.695, 0.69, False)),
    float_groups=("stem",),
)
CUT = Cut(0.4, 0.39, 5000, 70000, {"conv": (64, 32)}, (StageSensitivity("neck", 64, (0.25, 0.5), (0.1, 0.4)),))


def manifests() -> dict[str, Manifest]:
    folders = Repository(BUNDLED).profiles("blood-cells", 1)
    return {folder.profile: folder.read_manifest() for folder in folders}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """What builds leave: the bundled int8's chain, a pruning, and a step that was interrupted."""
    steps = WorkFolder(tmp_path / "work", lambda text: None)
    folder = Repository(BUNDLED).folder("blood-cells", 1, "int8")
    source = folder.read_manifest().source.sha256

    def export(target: Path) -> None:
        (target / "model.onnx").write_bytes(b"float")

    def quantise(target: Path) -> None:
        (target / "model.onnx").write_bytes(folder.model_path.read_bytes())
        (target / "quantisation.json").write_text(json.dumps(asdict(QUANTISED)))

    def prune(target: Path) -> None:
        (target / "network.safetensors").write_bytes(b"weights")
        (target / "prune.json").write_text(json.dumps([asdict(CUT)]))

    graph = steps.run("export", {"checkpoint": source}, export).file("model.onnx")
    steps.run("quantise", {"graph": graph.sha256}, quantise)
    steps.run("prune", {"checkpoint": source}, prune)
    steps.run("prune", {"checkpoint": "another"}, prune)
    interrupted = tmp_path / "work" / "prune-0"
    interrupted.mkdir()
    (interrupted / "prune.json").write_text("[")
    return tmp_path / "work"


def test_steps_are_found_by_the_hashes_of_what_they_made(work: Path) -> None:
    found = read_build_records(work, list(manifests().values()))
    assert found.quantisations == {"int8": QUANTISED}
    assert found.seconds.keys() == {"int8"}
    assert found.seconds["int8"].keys() == {"quantise", "export"}
    [pruned] = found.prunings
    assert pruned.cuts == (CUT,)
    assert pruned.profiles == ()


def test_a_work_folder_of_other_models_has_nothing(tmp_path: Path) -> None:
    assert read_build_records(tmp_path, list(manifests().values())) == BuildRecords()


def test_every_decision_is_in_the_report(work: Path) -> None:
    found = read_build_records(work, list(manifests().values()))
    [said, times, decisions, drawing, measured] = quantisation(found).blocks
    assert isinstance(said, Paragraph)
    assert "weights in 7 bits" in said.text
    assert "1 convolution had to stay in float" in said.text
    assert "from 70.00 to 69.50 (-0.50)" in said.text
    assert isinstance(times, Table)
    assert times.rows == [["all", "3.25 ms"], ["conv", "2.75 ms"]]
    assert isinstance(decisions, Table)
    assert decisions.rows == [
        ["stem", "68.00", "69.50", "stays in float"],
        ["head", "69.50", "69.00", "back to 8 bits"],
    ]
    assert isinstance(drawing, Gallery)
    assert isinstance(drawing.pictures[0], Drawing)
    assert ">stem<" in drawing.pictures[0].svg
    assert isinstance(measured, Table)
    assert measured.rows == [["stem", "20.5", "61.00"]]
    [_, cuts, stages] = pruning(found).blocks
    assert isinstance(cuts, Table)
    assert cuts.rows == [["1", "64 to 32", "0.01 M", "0.00 G", "0.390 (0.400)"]]
    assert isinstance(stages, Gallery)
    assert isinstance(stages.pictures[0], Drawing)
    assert ">neck<" in stages.pictures[0].svg


def test_damaged_records_are_named(work: Path, tmp_path: Path) -> None:
    [path] = work.glob("quantise-*/quantisation.json")
    path.write_text("{}")
    with pytest.raises(ReportError, match=r"quantisation\.json cannot be used: .*have it written again"):
        read_build_records(work, list(manifests().values()))
    path.with_name("stage.json").write_text("{}")
    with pytest.raises(ReportError, match=r"stage\.json is not the record of a step"):
        read_build_records(work, list(manifests().values()))
    (tmp_path / "naive.json").write_text("[]")
    with pytest.raises(ReportError, match=r"naive\.json cannot be used"):
        read_naive(tmp_path / "naive.json", manifests()["fp32"].source)


def test_of_steps_that_made_the_same_file_the_one_with_the_recipes_options_is_told(tmp_path: Path) -> None:
    steps, folder = WorkFolder(tmp_path, lambda text: None), Repository(BUNDLED).folder("blood-cells", 1, "int8")
    manifest = folder.read_manifest()
    options = manifest.recipe.model_dump()["quantise"]
    for sensitivity, ap in ((False, 0.1), (True, 0.2), (None, 0.3)):

        def quantise(target: Path, ap: float = ap) -> None:
            (target / "model.onnx").write_bytes(folder.model_path.read_bytes())
            (target / "quantisation.json").write_text(json.dumps(asdict(QUANTISED) | {"ap": ap}))

        steps.run("quantise", {"graph": "g", "options": options | {"sensitivity": sensitivity}}, quantise)
    assert read_build_records(tmp_path, [manifest]).quantisations["int8"].ap == 0.2


METRICS = Metrics(ap=0.6, ap50=0.9, ap75=0.7, per_class={}, per_size={}, images=3)


def naive_row(name: str, ap: float, change: Interval | None) -> NaiveRow:
    difference = None if change is None else Difference(change, change, 2000, 0)
    return NaiveRow(name, "onnxruntime", replace(METRICS, ap=ap), difference, 12.5, Ratio(1.5, 1.4, 1.6), 8_000_000)


NAIVE = (
    naive_row("float", 0.62, None),
    naive_row("defaults", 0.61, Interval(-0.01, -0.02, 0.005)),
    naive_row("no recovery", 0.1, Interval(-0.52, -0.6, -0.4)),
)


def timed(manifest: Manifest, difference: AccuracyDifference | None) -> MeasuredProfile:
    timings = {"onnxruntime": EngineTiming(manifest.latency, Ratio(1.0, 0.9, 1.1))}
    return MeasuredProfile(Profile(manifest, BUNDLED), timings, 0.62, difference)  # type: ignore[arg-type]


def test_naive_settings_are_shown_beside_the_profiles() -> None:
    shown, left_out = points([timed(manifests()["fp32"], None)], NAIVE)
    assert [(point.name, point.ours) for point in shown] == [("fp32", True), ("defaults, onnxruntime", False)]
    assert shown[1].ap == pytest.approx((61.0, 60.0, 62.5))
    assert (shown[1].speed, shown[1].megabytes) == ((1.5, 1.4, 1.6), 8.0)
    assert left_out == ["no recovery, onnxruntime (AP 10.0)"]
    [table, _] = naive_settings(NAIVE).blocks
    assert isinstance(table, Table)
    assert table.rows[0][3] == "–"
    assert table.rows[1] == [
        "defaults",
        "onnxruntime",
        "61.00",
        "-1.00 (-2.00 to +0.50)",
        "12.50 ms",
        "1.50x (1.40 to 1.60)",
        "8.00 MB",
    ]


def test_an_interval_that_leaves_its_difference_out_is_drawn_up_to_it() -> None:
    difference = AccuracyDifference(reference="fp32", ap=-0.01, lower=-0.008, upper=0.002, resamples=9)
    alone = [naive_row("one image", 0.1 + 0.2, Interval(0.1, 0.1, 0.1))]  # rounding alone would put its ends apart
    shown, _ = points([timed(manifests()["int8"], difference)], alone)
    assert shown[0].ap == pytest.approx((62.0, 62.0, 63.2))
    for point in shown:
        assert point.ap[1] <= point.ap[0] <= point.ap[2]
    assert len(pareto_plot([*shown, SHOWN[0]], "fp32").axes) == 2


def test_naive_settings_of_another_network_are_refused(tmp_path: Path) -> None:
    source, path = manifests()["fp32"].source, tmp_path / "naive.json"
    path.write_text(json.dumps(asdict(NaiveReport(source.checkpoint, source.sha256, NAIVE))))
    assert tuple(read_naive(path, source)) == NAIVE
    with pytest.raises(ReportError, match=r"the profiles are of blood-cells\.safetensors \(SHA-256 0+\)"):
        read_naive(path, source.model_copy(update={"sha256": 64 * "0"}))


def test_what_no_recipe_holds_is_told_for_a_repetition() -> None:
    built = manifests()
    cut = built["pruned"]
    texts = [
        block.text
        for block in repeat("report", list(built.values()), BuildRecords()).blocks
        if not isinstance(block, Gallery | Table)
    ]
    assert (
        f"The network blood-cells-pruned.safetensors (SHA-256 {cut.source.cut_sha256}), which was cut before"
        in "".join(texts)
    )
    assert "--version 1 --score 0.5" in texts[3]
    assert "--openvino" not in texts[3]
    assert "--train-recipe" not in "".join(texts)
    tuned = cut.recipe.model_copy(update={"prune": Prune(macs=0.4, fine_tune=FineTune(epochs=1, learning_rate=1e-3))})
    both = cut.model_copy(update={"recipe": tuned, "latencies": {"onnxruntime": cut.latency}})
    texts = [
        block.text
        for block in repeat("report", [both], BuildRecords()).blocks
        if not isinstance(block, Gallery | Table)
    ]
    assert texts[3].endswith("--openvino")
    assert "--train-recipe" in texts[4]


def test_profiles_come_with_the_reference_first() -> None:
    profiles, elsewhere = read_profiles(BUNDLED, None, "int8")
    assert [profile.name for profile in profiles] == ["int8", "fp32", "pruned", "int8+pruned"]
    assert elsewhere == []


def test_profiles_for_other_hardware_are_named_but_not_measured(tmp_path: Path) -> None:
    for name, target in (("fp32", "cpu"), ("fp16", "gpu")):
        folder = Repository(tmp_path).folder("blood-cells", 1, name)
        shutil.copytree(BUNDLED / "blood-cells" / "1" / "fp32", folder.path)
        manifest = manifests()["fp32"]
        recipe = manifest.recipe.model_copy(update={"target": target})
        folder.write(manifest.model_copy(update={"profile": name, "recipe": recipe}))
    profiles, elsewhere = read_profiles(tmp_path, None, "fp32")
    assert [profile.name for profile in profiles] == ["fp32"]
    latency = manifests()["fp32"].latency
    measured = [MeasuredProfile(profiles[0], {"onnxruntime": EngineTiming(latency, Ratio(1.0, 1.0, 1.0))}, 0.6, None)]
    texts = [block.text for block in overview(measured, elsewhere, None).blocks if isinstance(block, Paragraph)]
    assert "fp16 is for the target gpu and was not measured on this processor." in texts
    with pytest.raises(ReportError, match="has no profile fp16 for ONNX Runtime on processors"):
        read_profiles(tmp_path, None, "fp16")


def test_what_speeds_are_against_runs_in_onnx_runtime(tmp_path: Path) -> None:
    folder = Repository(tmp_path).folder("blood-cells", 1, "bf16")
    shutil.copytree(BUNDLED / "blood-cells" / "1" / "fp32", folder.path)
    changes = {"profile": "bf16", "engine": "openvino", "precision": "bf16"}
    folder.write(manifests()["fp32"].model_copy(update=changes))
    with pytest.raises(ReportError, match="has no profile bf16 for ONNX Runtime"):
        read_profiles(tmp_path, None, "bf16")


@pytest.mark.parametrize(
    ("model", "reference", "message"), [("dogs", "fp32", "has no model dogs"), (None, "fp64", "has no profile fp64")]
)
def test_what_is_not_there_is_named(model: str | None, reference: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        read_profiles(BUNDLED, model, reference)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_an_object_is_the_same_by_label_and_place() -> None:
    first = found((0, 0, 10, 10, 0.9, 0), (20, 20, 30, 30, 0.8, 0), (50, 50, 60, 60, 0.7, 1))
    second = found((0, 1, 10, 10, 0.5, 0), (20, 20, 30, 30, 0.8, 1), (56, 50, 66, 60, 0.7, 1))
    assert unmatched(first, second).tolist() == [False, True, True]
    assert unmatched(first, found()).tolist() == [True] * 3
    assert unmatched(found(), first).tolist() == []


def test_one_box_is_not_the_partner_of_two() -> None:
    twice = found((0, 0, 10, 10, 0.6, 0), (0, 0, 10, 9, 0.9, 0))
    assert unmatched(twice, found((0, 0, 10, 10, 0.5, 0))).tolist() == [True, False]
    assert SAME_IOU == 0.5


BOXES = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, st.integers(1, 9), st.integers(0, 1)), max_size=6
)


@settings(max_examples=50)
@given(BOXES, BOXES)
def test_as_many_are_matched_in_one_as_in_the_other_at_most(
    first: list[tuple[int, ...]], second: list[tuple[int, ...]]
) -> None:
    one, other = (
        found(*((x, y, x + width, y + height, score / 10, label) for x, y, width, height, score, label in rows))
        for rows in (first, second)
    )
    alone = unmatched(one, other)
    for label in (0, 1):
        matched = np.count_nonzero(~alone & (one.labels == label))
        assert matched <= np.count_nonzero(other.labels == label)
    assert not unmatched(one, one).any()


SHOWN = [
    Point("fp32", (62.5, 62.5, 62.5), (1.0, 1.0, 1.0), 32.0),
    Point("slow & small", (62.0, 61.0, 63.0), (0.9, 0.8, 1.0), 4.0),
    Point("both", (62.4, 61.5, 63.0), (7.0, 6.8, 7.2), 1.3),
    Point("naive", (61.0, 60.5, 61.5), (1.4, 1.3, 1.5), 8.0, ours=False),
]


def test_drawings_are_the_same_each_time_and_take_the_ink_of_the_page() -> None:
    svg = as_svg(speed_plot(SHOWN, "fp32"))
    assert svg == as_svg(speed_plot(SHOWN, "fp32"))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "<metadata" not in svg
    for name in ("fp32", "slow &amp; small", "both", "naive"):
        assert f">{name}<" in svg
    white = on_white(svg)
    assert "currentColor" not in white
    assert '<rect width="100%" height="100%" fill="#ffffff"/>' in white


def test_the_front_joins_what_nothing_dominates() -> None:
    speed, size = pareto_plot(SHOWN, "fp32").axes
    assert np.asarray(speed.lines[0].get_xydata()).tolist() == [[1.0, 62.5], [7.0, 62.4]]
    assert np.asarray(size.lines[0].get_xydata()).tolist() == [[1.3, 62.4], [32.0, 62.5]]


def test_names_suit_files_and_links() -> None:
    assert [slug(name) for name in ("int8+pruned", "int 8 (a)", "fp32")] == ["int8-pruned", "int-8-a-", "fp32"]


DOCUMENT = Document(
    "A | B",
    [
        Section("<b>1</b>", [Paragraph("x_1 <script>"), Table(["name", "AP"], [["int8|x", "62.5"]]), Code("a & b")]),
        Section(
            "2",
            [
                Gallery([Drawing("d", "drawn", '<svg id="a"><use href="#a" clip-path="url(#a)"/></svg>')]),
                Gallery([Photograph("p", 'a "photograph"', b"\xff\xd8")]),
            ],
        ),
    ],
)


def test_markdown_has_its_pictures_beside_it(tmp_path: Path) -> None:
    write_markdown(DOCUMENT, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "# A \\| B" in text
    assert "x\\_1 \\<script\\>" in text
    assert "| name | AP |\n| --- | --: |\n| int8\\|x | 62.5 |" in text
    assert "```\na & b\n```" in text
    assert "![drawn](images/d.svg)" in text
    assert (tmp_path / "images" / "d.svg").read_text().startswith('<svg id="a"><rect')
    assert (tmp_path / "images" / "p.jpg").read_bytes() == b"\xff\xd8"


def test_html_takes_nothing_as_markup_and_keeps_drawings_apart(tmp_path: Path) -> None:
    write_html(DOCUMENT, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "x_1 &lt;script&gt;" in text
    assert "<script" not in text
    assert "&lt;b&gt;1&lt;/b&gt;" in text
    assert '<svg id="d-a"><use href="#d-a" clip-path="url(#d-a)"/></svg>' in text
    assert '<img alt="a &#34;photograph&#34;" src="data:image/jpeg;base64,/9g=">' in text


def test_the_published_rows_are_arithmetic() -> None:
    first = article.PUBLISHED[0]
    for row in article.PUBLISHED:
        factor = (0.8 if "pruned" in row.profile else 1) / (4 if "int8" in row.profile else 1)
        # Rounded twice at most.
        assert row.parameters == pytest.approx(first.parameters * factor, abs=0.051)
        assert row.operations == pytest.approx(first.operations * factor, abs=0.051)
