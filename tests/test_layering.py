"""Who may import whom, read off the source of every package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PACKAGES = {
    "damoserve": ROOT / "proto",
    "damoserve_models": ROOT / "profiles",
    "damoserve_profiles": ROOT / "profiles",
    "damoserve_server": ROOT / "server",
    "damoserve_compress": ROOT / "compress",
    "damoserve_client": ROOT / "clients" / "python",
}
MAY_IMPORT = {
    "damoserve": set(),
    "damoserve_client": {"damoserve"},
    "damoserve_models": set(),
    "damoserve_profiles": {"damoserve_models"},
    "damoserve_server": {"damoserve", "damoserve_profiles"},
    "damoserve_compress": {"damoserve_profiles"},
}
# Besides the standard library, nothing else: what installing a client brings.
THIRD_PARTY = {
    "damoserve": {"google", "grpc"},
    "damoserve_client": {"PIL", "google", "grpc", "grpc_status", "rich", "typer"},
}
# These it uses where they are installed.
OPTIONAL = {"damoserve": set(), "damoserve_client": {"opentelemetry"}}
# What an extra brings, in its own folder.
EXTRAS = {
    "damoserve_client/playground": {"fastapi", "nicegui", "starlette", "uvicorn"},
    "damoserve_client/top": {"prometheus_client"},
}
FORBIDDEN = {
    "damoserve_profiles": {"torch", "onnx", "onnxruntime", "grpc"},
    "damoserve_server": {"torch", "onnx"},
}


def imported(package: str) -> Iterator[tuple[Path, str]]:
    for path in (PACKAGES[package] / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    not_allowed = (set(PACKAGES) - {package} - MAY_IMPORT[package]) | FORBIDDEN.get(package, set())
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path, name in imported(package) if name in not_allowed]
    assert not wrong


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_a_client_needs_only_its_dependencies(package: str) -> None:
    allowed = sys.stdlib_module_names | {package} | MAY_IMPORT[package] | THIRD_PARTY[package] | OPTIONAL[package]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in imported(package)
        if name not in allowed | EXTRAS.get(f"{package}/{path.parent.name}", set())
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("missing", "modules"),
    [
        (
            "torch",
            [
                "damoserve_compress",
                "damoserve_compress.datasets",
                "damoserve_compress.datasets.rendered",
                "damoserve_compress.commands.build",
            ],
        ),
        ("numpy", ["damoserve_client", "damoserve_client.cli"]),
        ("opentelemetry", ["damoserve_client", "damoserve_client.aio", "damoserve_server.app"]),
        ("prometheus_client", ["damoserve_client", "damoserve_client.cli"]),
        ("nicegui", ["damoserve_client", "damoserve_client.cli", "damoserve_client.playground"]),
    ],
)
def test_modules_load_without(missing: str, modules: list[str]) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_package_was_read() -> None:
    assert all(any(imported(package)) for package in PACKAGES)


def test_proto_is_an_import_root_and_never_a_package() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists()
