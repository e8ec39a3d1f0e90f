"""Structures as files, so that a network of one's own is trained and loaded like a variant.

A YAML file has the fields of `Structure`. A `.txt` file is what TinyNAS writes: a Python list of dictionaries, the
stem and then one for each stage, which tells the backbone only:

    family      `mobile` where "nano" is in the file's name, for the text does not tell it; otherwise `res` for stages
                of class ...K1KX and `csp` for ...KXKX
    the rest    as the variant with the same stages has it; for other stages as S, M or Ns, the smallest of its family
                whose neck is as wide as its backbone, with the neck widened to the stages in the file
    mobile      the published rule for the expanded width, 3.5 times the stage's in the first stage and half a time more
                in each further one, takes the place of the bottleneck in the file
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from damoserve_compress.network.structures.structure import (
    Count,
    StageStructure,
    Structure,
    StructureError,
    multiple_of_8,
    structure_from_dict,
    structure_to_dict,
)
from damoserve_compress.network.structures.variants import NS, VARIANTS, M, S
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.files import replace_text

_TEMPLATES: Final[Mapping[str, Structure]] = MappingProxyType({"K1KX": S, "KXKX": M})


def find_structure(variant: str) -> Structure:
    """The structure of a named variant or in a file; raises StructureError for a name that neither has."""
    if variant in VARIANTS:
        return VARIANTS[variant]
    path = Path(variant)
    if not path.is_file():
        raise StructureError(f"unknown variant {variant!r}, known: {', '.join(VARIANTS)}; nor is it a structure file")
    return read_structure(path)


def read_structure(path: Path) -> Structure:
    """Reads a TinyNAS text (`.txt`) or a YAML file; what has no name takes the file's. Raises StructureError."""
    try:
        text = path.read_text(encoding="utf-8")
        return _parse_tinynas(text, path.stem) if path.suffix == ".txt" else _parse_yaml(text, path.stem)
    except (OSError, ValueError, SyntaxError, yaml.YAMLError) as error:
        raise StructureError(f"{path} is no structure: {error}") from error


def write_structure(path: Path, structure: Structure) -> None:
    """Writes a YAML file that `read_structure` reads back, replacing `path` in one step."""
    text = yaml.safe_dump(structure_to_dict(structure), sort_keys=False, default_flow_style=None, width=120)
    replace_text(path, text)


def _parse_yaml(text: str, name: str) -> Structure:
    fields = yaml.safe_load(text)
    if not isinstance(fields, dict):
        raise StructureError("it holds no fields")
    return structure_from_dict({"name": name} | fields)


class _Stem(BaseModel):
    out: Count


class _StageFields(BaseModel):
    kind: Annotated[str, Field(alias="class", pattern="(K1KX|KXKX)$")]
    taken: Annotated[Count, Field(alias="in")]
    out: Count
    btn: Count
    s: Annotated[int, Field(ge=1, le=2)]
    k: Literal[3]
    depth: Annotated[Count, Field(alias="L")]


class _Text(BaseModel):
    stem: _Stem
    stages: Annotated[tuple[_StageFields, ...], Field(min_length=1)]


def _parse_tinynas(text: str, name: str) -> Structure:
    entries = ast.literal_eval(text.strip())
    if not isinstance(entries, list):
        raise StructureError("it holds no list of stages")
    try:
        parsed = _Text.model_validate({"stem": next(iter(entries), None), "stages": entries[1:]})
    except ValidationError as error:
        raise StructureError(describe_faults(error)) from error
    template = _template(parsed, name)
    stages = _stages(parsed, template.family == "mobile")
    for published in VARIANTS.values():
        if (published.family, published.stem_channels, published.stages) == (template.family, parsed.stem.out, stages):
            return replace(published, name=name)
    structure = replace(template, name=name, stem_channels=parsed.stem.out, stages=stages)
    return replace(structure, neck=replace(template.neck, out_channels=structure.feature_channels))


def _template(parsed: _Text, name: str) -> Structure:
    if "nano" in name:
        return NS
    kinds = {stage.kind[-4:] for stage in parsed.stages}
    if len(kinds) > 1:
        raise StructureError(f"stages: classes ending in both {' and '.join(sorted(kinds))} do not mix")
    return _TEMPLATES[kinds.pop()]


def _stages(parsed: _Text, mobile: bool) -> tuple[StageStructure, ...]:
    return tuple(
        StageStructure(
            stage.taken,
            stage.out,
            bottleneck=multiple_of_8(math.ceil(stage.out * (3.5 + 0.5 * index))) if mobile else stage.btn,
            depth=stage.depth,
            stride=stage.s,
        )
        for index, stage in enumerate(parsed.stages)
    )
