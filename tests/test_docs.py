"""Every link and anchor of every page leads somewhere, and so does every path and module that it names."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "clients", "compress", "deploy", "docs", "examples", "profiles", "proto", "server", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
NAMING_PAGES = ("*.py", "*.yml", "*.yaml", "*.sh", "*.proto", "*.json")

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`(?P<code>[^`\n]+)`")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
SOURCE = re.compile(r'(?:src|srcset|href)="(?P<target>[^"]+)"')
HEADING = re.compile(r"^#+ +(?P<text>.+?) *$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z]+:")
"""A scheme: what is not in the tree is not looked for."""
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./+-]+")
MODULE = re.compile(r"\bpython3? -m (?P<module>(?:benchmarks|damoserve|deploy)[\w.]*)")
PAGE = re.compile(r"\bdocs/[\w-]+\.md(?:#[\w-]+)?")


def prose(page: Path) -> str:
    """Without blocks of code, in which brackets and hashes are none of Markdown's."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to headings: the second of the same name gets a number."""
    found: list[str] = []
    for heading in HEADING.finditer(prose(page)):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading["text"]).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def targets(page: Path) -> Iterator[str]:
    text = CODE.sub("code", prose(page))
    for pattern in (LINK, SOURCE):
        yield from (unquote(match["target"]) for match in pattern.finditer(text))


def fault(target: str, base: Path) -> str | None:
    """What is wrong with a link from a file in the folder `base`, or with an anchor of the file `base`."""
    name, _, anchor = target.partition("#")
    linked = (base.parent if base.is_file() else base) / name if name else base
    if not linked.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(linked):
        return f"{target}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    inside = (target for target in targets(page) if not ELSEWHERE.match(target))
    assert [wrong for target in inside if (wrong := fault(target, page))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page: Path) -> None:
    named = (match["code"] for match in CODE.finditer(prose(page)))
    assert [path for path in named if PATH.fullmatch(path) and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_a_page_runs_exist(page: Path) -> None:
    named = {match["module"] for match in MODULE.finditer(page.read_text())}
    assert [module for module in named if importlib.util.find_spec(module) is None] == []


def test_pages_that_code_names_exist() -> None:
    files = (path for folder in FOLDERS for kind in NAMING_PAGES for path in (ROOT / folder).rglob(kind))
    named = ((path, match[0]) for path in files for match in PAGE.finditer(path.read_text()))
    wrong = [f"{path.relative_to(ROOT)}: {said}" for path, target in named if (said := fault(target, ROOT))]
    assert wrong == []


def test_the_checks_find_what_is_broken(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n[a](#same-1) [b](gone.md)\n")
    assert anchors(page) == {"one-two-three", "same", "same-1"}
    assert [fault(target, page) for target in targets(page)] == [None, "gone.md: no such file"]
    assert fault("page.md#no-heading", tmp_path) == "page.md#no-heading: no such heading"
