"""Structures of one's own: read from either kind of file, written, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_compress.network import VARIANTS, Structure, StructureError, build_network
from damoserve_compress.network.structures import (
    StageStructure,
    find_structure,
    multiple_of_8,
    read_structure,
    structure_from_dict,
    structure_to_dict,
    write_structure,
)
from tests.support.compress.families import CSP, FAMILIES, RES

PUBLISHED = ("T", "S", "M", "L", "Ns", "Nm", "Nl")


def tinynas(structure: Structure, stem_in: int = 3, kind: str | None = None) -> list[dict[str, Any]]:
    """What a search for this backbone writes."""
    kind = kind or ("SuperResConvKXKX" if structure.bottleneck_kernel == 3 else "SuperResConvK1KX")
    stem = {"class": "ConvKXBNRELU", "in": stem_in, "k": 3, "nbitsA": 8, "out": structure.stem_channels, "s": 1}
    stages = (
        {"class": kind, "in": s.in_channels, "out": s.out_channels, "btn": s.bottleneck, "L": s.depth, "s": s.stride}
        for s in structure.stages
    )
    return [stem, *(stage | {"k": 3, "inner_class": "ResConv", "nbitsA": [8, 8]} for stage in stages)]


def write_text(path: Path, entries: object) -> Path:
    path.write_text("  " + pformat(entries) + "\n")
    return path


@pytest.mark.parametrize("structure", [*VARIANTS.values(), *FAMILIES], ids=lambda structure: structure.name)
def test_structures_survive_json_and_yaml(structure: Structure, tmp_path: Path) -> None:
    assert structure_from_dict(json.loads(json.dumps(structure_to_dict(structure)))) == structure
    write_structure(tmp_path / "any.yaml", structure)
    assert read_structure(tmp_path / "any.yaml") == structure


def test_a_file_needs_only_what_has_no_default_and_names_the_structure(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
        stem_channels: 8
        stages:
          - {in_channels: 8, out_channels: 16, bottleneck: 8, depth: 1}
          - {in_channels: 16, out_channels: 16, bottleneck: 8, depth: 1}
          - {in_channels: 16, out_channels: 24, bottleneck: 8, depth: 2}
          - {in_channels: 24, out_channels: 32, bottleneck: 16, depth: 1}
        neck: {out_channels: [8, 16, 24]}
        """
    )
    structure = find_structure(str(path))
    assert (structure.name, structure.family, structure.input_size) == ("mine", "res", 640)
    assert build_network(str(path), num_classes=2).structure == structure


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("stem_in", [3, 12])
def test_the_references_texts_give_the_published_variants(variant: str, stem_in: int, tmp_path: Path) -> None:
    published = VARIANTS[variant]
    name = "tinynas_nano" if published.family == "mobile" else "tinynas_k"
    entries = tinynas(published, stem_in)
    for entry in entries[1:]:
        if published.family == "mobile":
            entry["btn"] = 24  # means nothing there, and is not what the blocks have
    assert read_structure(write_text(tmp_path / f"{name}.txt", entries)) == replace(published, name=name)


@pytest.mark.parametrize(
    ("kind", "like"),
    [("SuperResK1KX", "S"), ("SuperResConvK1KX", "S"), ("SuperResKXKX", "M"), ("SuperResConvKXKX", "M")],
)
def test_what_a_text_lacks_comes_from_its_family(kind: str, like: str, tmp_path: Path) -> None:
    structure = read_structure(write_text(tmp_path / "found.txt", tinynas(CSP, kind=kind)))
    template = VARIANTS[like]
    assert structure == replace(
        template,
        name="found",
        stem_channels=CSP.stem_channels,
        stages=CSP.stages,
        neck=replace(template.neck, out_channels=(32, 48, 64)),
    )


def test_a_text_of_nano_name_is_mobile(tmp_path: Path) -> None:
    structure = read_structure(write_text(tmp_path / "my_nano.txt", tinynas(RES)))
    assert structure.family == "mobile"
    assert [stage.bottleneck for stage in structure.stages] == [32, 64, 72, 120, 176]
    assert structure.neck.out_channels == (16, 24, 32)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.yaml", "just words", "a.yaml is no structure: it holds no fields"),
        ("a.yaml", "stages: [", "a.yaml is no structure"),
        ("a.yaml", "stem_channels: 8\nneck: {out_channels: [8, 8]}", "stages: Field required; neck.out_channels.2"),
        ("a.txt", "{}", "it holds no list of stages"),
        ("a.txt", "[1, f()]", "a.txt is no structure"),
        ("a.txt", "[", "a.txt is no structure"),
        ("a.txt", "[]", "stem: .*; stages: "),
        (
            "a.txt",
            "[{'out': 8}, {'class': 'X', 'L': 0}]",
            "stages.0.class: .*; stages.0.in: Field req.*stages.0.L: ",
        ),
    ],
)
def test_files_that_hold_no_structure_are_refused(file: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_text(text)
    with pytest.raises(StructureError, match=message):
        read_structure(path)


def test_texts_that_cannot_be_built_are_refused(tmp_path: Path) -> None:
    mixed = tinynas(RES)
    mixed[2]["class"] = "SuperResConvKXKX"
    with pytest.raises(StructureError, match=r"mixed.txt is no structure: .*K1KX and KXKX do not mix"):
        read_structure(write_text(tmp_path / "mixed.txt", mixed))
    for published in ("T", "M"):
        wrong = tinynas(VARIANTS[published])
        wrong[0]["out"] += 8
        with pytest.raises(StructureError, match=r"stage 1 takes \d+ channels, gets \d+"):
            read_structure(write_text(tmp_path / "wrong.txt", wrong))
    broken = tinynas(RES)
    broken[2]["in"] = 9
    with pytest.raises(StructureError, match=r"broken.txt is no structure: .*stage 2 takes 9 channels, gets 8"):
        read_structure(write_text(tmp_path / "broken.txt", broken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "transformer"}, "family: Input should be 'res', 'csp' or 'mobile'"),
        ({"activation": "gelu"}, "activation: "),
        ({"depth": 3}, "depth: Unexpected keyword"),
        ({"input_size": 100}, "input_size: .*multiple of 32"),
        ({"neck": {"out_channels": [8, 8, 8], "hidden_ratio": float("inf")}}, "neck.hidden_ratio: .*finite"),
        ({"stem_channels": 9}, "tiny: stage 1 takes 8 channels, gets 9$"),
    ],
)
def test_fields_that_mean_nothing_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(StructureError, match=f"^{message}"):
        structure_from_dict(structure_to_dict(RES) | change)


@pytest.mark.parametrize(
    ("structure", "change", "message"),
    [
        (RES, {"stem_channels": 9}, "stage 1 takes 8 channels, gets 9"),
        (RES, {"stages": RES.stages[:4]}, "strides"),
        (RES, {"stages": (*RES.stages, StageStructure(32, 32, bottleneck=8, depth=1))}, "strides"),
        (RES, {"stages": (replace(RES.stages[0], stride=3), *RES.stages[1:])}, "stride 1 or 2"),
        (RES, {"family": "csp"}, "stage 4 of family csp"),
        (
            CSP,
            {"stages": (StageStructure(8, 8, bottleneck=8, depth=1, stride=1), *CSP.stages)},
            "stage 1 of family csp",
        ),
        (RES, {"neck": replace(RES.neck, out_channels=(1, 16, 24))}, "the neck halves its channels.* cannot have 1$"),
        (RES, {"neck": replace(RES.neck, hidden_ratio=0.2)}, "hidden_ratio leaves nothing of half of 8 channels"),
        (
            RES,
            {"stages": (*RES.stages[:-1], replace(RES.stages[-1], out_channels=1))},
            "the neck halves its channels.* cannot have 1$",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(structure: Structure, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StructureError, match=message):
        replace(structure, **change)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(StructureError, match="unknown variant 'X', known: T, S, M, L, Ns, Nm, Nl, P; nor is it a "):
        build_network("X")


@given(st.integers(1, 5000))
def test_widths_become_multiples_of_8_at_most_a_tenth_smaller(width: int) -> None:
    rounded = multiple_of_8(width)
    assert rounded % 8 == 0
    assert 0.9 * width <= rounded < width + 8
