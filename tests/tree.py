# SPDX-License-Identifier: Apache-2.0
"""The files of the checkout, for tests about the repository itself."""

import ast
from collections.abc import Iterator
from pathlib import Path

from llsa_gen.catalog import catalogue_specs

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llsa_gen"
FOLDERS = (".ci", "llsa_gen", "templates", "tests", "tools")
SUFFIXES = ("", ".c", ".cu", ".h", ".jinja", ".md", ".py", ".sh", ".toml", ".txt")


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder that a person or the generator wrote, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def text_files() -> list[Path]:
    """All text files of the repository; of ``generated/`` only the catalogue, which is what git holds."""
    folders = [ROOT / name for name in FOLDERS] + [ROOT / "generated" / slug for slug in catalogue_specs()]
    inside = [path for folder in folders for path in files_below(folder) if path.suffix in SUFFIXES]
    above = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # which a worktree has as a file
    return inside + sorted(path for path in above if path.suffix in (*SUFFIXES, ".toml"))


def python_files() -> list[Path]:
    """The Python files of the package."""
    return [path for path in files_below(PACKAGE) if path.suffix == ".py"]


def module_name(path: Path) -> str:
    """The dotted name of a Python file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _guards_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below a node, without what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _guards_types(child):
            children = [nested for other in child.orelse for nested in (other, *_run_time_nodes(other))]
            yield from children
        else:
            yield child
            yield from _run_time_nodes(child)


def imports_of(path: Path) -> set[str]:
    """What a file imports at run time, inside of functions too; ``from a import b`` gives ``a.b``."""
    found: set[str] = set()
    for node in _run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found
