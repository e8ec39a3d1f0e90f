"""Structures of DAMO-YOLO networks as plain data: the table of variants, and structures of one's own in files.

StructureError (ValueError)    a structure is not complete, its parts do not fit together, or its name is unknown
"""

from damoserve_compress.network.structures.files import find_structure, read_structure, write_structure
from damoserve_compress.network.structures.structure import (
    STRIDES,
    NeckStructure,
    StageStructure,
    Structure,
    StructureError,
    multiple_of_8,
    structure_from_dict,
    structure_to_dict,
)
from damoserve_compress.network.structures.variants import VARIANTS

__all__ = [
    "STRIDES",
    "VARIANTS",
    "NeckStructure",
    "StageStructure",
    "Structure",
    "StructureError",
    "find_structure",
    "multiple_of_8",
    "read_structure",
    "structure_from_dict",
    "structure_to_dict",
    "write_structure",
]
