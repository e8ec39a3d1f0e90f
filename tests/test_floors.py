"""The rooms of a package lie on floors: a file imports only from rooms below its own, and nothing is circular."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SERVER = ROOT / "server/damoserve_server"
COMPRESS = ROOT / "compress/damoserve_compress"
FLOORS: Mapping[Path, Sequence[set[str]]] = {
    SERVER: [
        {"errors"},
        {"engines", "access", "scheduling", "inputs"},
        {"models"},
        {"fidelity", "telemetry"},
        {"configuration"},
        {"metrics"},
        {"detection", "lifecycle"},
        {"rpc"},
        {"v1", "kserve"},
        {"assembly"},
        {"app"},
        {"cli"},
        {"__main__"},
    ],
    COMPRESS: [
        {"environment"},
        {"advise", "datasets"},
        {"fetch", "network"},
        {"measure"},
        {"export", "quantise", "training"},
        {"prune", "search", "targets"},
        {"build"},
        {"naive"},
        {"report"},
        {"commands"},
        {"cli"},
    ],
}
"""The rooms and files of each package, from the lowest floor up. Those of one floor do not know each other."""

OTHERS = [
    ROOT / "clients/python/damoserve_client",
    ROOT / "profiles/damoserve_profiles",
    ROOT / "profiles/damoserve_models",
]

MOST_BOXES, MOST_FILES = 20, 5


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name within it; the package itself is left out."""
    names = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    del names["__init__"]
    return names


def imported(package: Path, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of its own package that a file imports, for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            name = target.removeprefix(f"{package.name}.")
            if name != target:
                yield name if name in known else name.rpartition(".")[0]


def arrows(package: Path) -> list[tuple[str, str]]:
    known = modules(package)
    return [(name, target) for name, path in known.items() for target in imported(package, path, known) if target]


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("package", FLOORS, ids=lambda package: package.name)
def test_no_room_imports_one_above_or_beside_it(package: Path) -> None:
    floor = {name: number for number, names in enumerate(FLOORS[package]) for name in names}
    wrong = {
        f"{importer} imports {target}"
        for importer, target in arrows(package)
        if room(importer) != room(target) and floor[room(importer)] <= floor[room(target)]
    }
    assert not wrong


@pytest.mark.parametrize("package", FLOORS, ids=lambda package: package.name)
def test_no_files_import_each_other_in_a_circle(package: Path) -> None:
    graph: dict[str, set[str]] = {}
    for importer, target in arrows(package):
        if importer != target:
            graph.setdefault(importer, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", FLOORS, ids=lambda package: package.name)
def test_a_package_has_few_rooms_and_fewer_loose_files(package: Path) -> None:
    boxes = {room(module) for module in modules(package)}
    assert boxes == set().union(*FLOORS[package])
    assert len(boxes) <= MOST_BOXES
    assert len([box for box in boxes if (package / f"{box}.py").exists()]) <= MOST_FILES


@pytest.mark.parametrize("package", [*FLOORS, *OTHERS], ids=lambda package: package.name)
def test_an_init_file_only_passes_names_on(package: Path) -> None:
    def passes_on(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return ast.unparse(node.targets[0]) == "__all__"
        if isinstance(node, ast.Expr):
            return isinstance(node.value, ast.Constant)  # the docstring
        return isinstance(node, ast.Import | ast.ImportFrom)

    with_code = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("__init__.py")
        for node in ast.parse(path.read_text()).body
        if not passes_on(node)
    ]
    assert not with_code
