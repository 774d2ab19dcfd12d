"""The picture of the structure in qwqcli/README.md, held against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "qwqcli"
MODULES = [p for p in PACKAGE.rglob("*.py") if "training" not in p.parts]


def name(path: Path) -> str:
    """`qwqcli/engine/llama.py` is `engine.llama`; a package's `__init__` is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    known = {name(p) for p in MODULES} - {""}
    return {m.removeprefix("qwqcli.") for m in imports(path) if m.startswith("qwqcli.")} & known


def test_imports_have_no_cycle() -> None:
    """No module imports itself, however far around."""
    graph = {name(path): ours(path) - {name(path)} for path in MODULES}
    while graph:
        leaves = [module for module, needs in graph.items() if not needs & set(graph)]
        assert leaves, f"a cycle among {sorted(graph)}"
        for leaf in leaves:
            del graph[leaf]


OWNERS = {
    "llama_cpp": {"engine.native"},
    "colorama": {"__main__"},
    "jinja2": {"template"},
    "yaml": {"yaml_file"},
    "jsonschema": {"checkers.structured"},
    "reasoning_gym": {"suite.gym"},
    "prompt_toolkit": {"repl.prompt"},
    "typer": {
        "cli",
        "commands",
        *(
            f"commands.{name}"
            for name in (
                "bench",
                "cache",
                "files",
                "machine",
                "prompts",
                "sessions",
                "settings",
                "suites",
                "talk",
            )
        ),
    },
    "markdown_it": {"markdown"},
    "huggingface_hub": {"hub.sources"},
    "filelock": {"hub.store"},
    "numpy": {"engine.native", "engine.perplexity", "engine.twin"},
    "sqlite3": {"sessions"},
    "psutil": {"bench.watch"},
    "plotille": {"bench.draw"},
    "matplotlib": {"bench.draw"},
    "torch": set(),
}


def test_each_library_has_one_owner() -> None:
    """A library stops at one door: no second module imports it."""
    for library, owners in OWNERS.items():
        users = {
            name(path)
            for path in MODULES
            if any(m == library or m.startswith(f"{library}.") for m in imports(path))
        }
        assert users == owners, library


def rows() -> list[str]:
    """The first column of the table in qwqcli/README.md, in order."""
    table = (PACKAGE / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def row(path: Path) -> str:
    """The row that a module belongs to: its own, or that of its folder."""
    file = path.relative_to(PACKAGE).as_posix()
    return next((r for r in rows() if r.endswith("/") and file.startswith(r)), file)


def test_every_module_is_in_the_picture() -> None:
    """The table names every module, and none that is not there."""
    assert {row(path) for path in MODULES} - {"__init__.py"} == set(rows())


def test_imports_go_from_top_to_bottom() -> None:
    """A module imports only what stands above it in the table."""
    order = {r: index for index, r in enumerate(rows())}
    paths = {name(path): path for path in MODULES}
    for path in MODULES:
        if row(path) in order:
            for module in ours(path):
                assert order[row(paths[module])] <= order[row(path)], (name(path), module)
