# SPDX-License-Identifier: Apache-2.0
"""The shape of the code base: which way imports point, what is lazy, how long things are, what files must say."""

import ast
import json
import re
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest

import llsa_gen
from llsa_gen.ops.launch import STRIDE_UNIT
from llsa_gen.schedule.lanes import STRIP
from tests.tree import PACKAGE, ROOT, imports_of, module_name, python_files, text_files

# Imports point up this list only. FACADE is `llsa_gen` itself with its public names.
FACADE = "llsa_gen"
ORDER = (
    *("errors", "digest", "paths", "environment", "dtypes", "orders"),
    *("spec", "catalog", "targets", "reference", "ir", "stages", "lowering", "cost", "schedule"),
    *(
        "manifest",
        "codegen",
        "jit",
        "ops",
        FACADE,
        "workloads",
        "timing",
        "evidence",
        "bench",
        "tuning",
        "demo",
        "cli",
        "__main__",
    ),
)
COMPILERS = {"tilelang", "tvm", "tvm_ffi"}
HEAVY = {"torch", "sympy", *COMPILERS}

LONGEST_FILE = 500
LONG_FUNCTION = 30
SHARE_OF_SHORT_FUNCTIONS = 0.9

HEADER = "SPDX-License-Identifier: Apache-2.0"
UNHEADED_SUFFIXES = {".md", ".txt"}
UNHEADED = {"LICENSE", ".gitignore"}
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:work|root|home|Users|tmp|mnt)/")

FILES = pytest.mark.parametrize("path", python_files(), ids=module_name)


def room_of(name: str) -> str | None:
    """The entry of ORDER that an import names; None for other libraries and for the version."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name or parts[1:] == ["__version__"]:
        return None
    return parts[1] if len(parts) > 1 and exists(parts[1]) else FACADE


def exists(room: str) -> bool:
    """Whether a name is a module or a folder of the package."""
    return (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file()


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(module_name(path)) for path in python_files()}
    assert rooms <= set(ORDER), "add the new room to ORDER, below everything that it imports"


@FILES
def test_imports_point_one_way(path: Path) -> None:
    own = room_of(module_name(path))
    assert own is not None
    if own == FACADE:
        return  # hands out public names of every room, each on first use
    seen = {room for room in map(room_of, imports_of(path)) if room not in (None, own)}
    wrong = sorted(room for room in seen if room not in ORDER or ORDER.index(room) > ORDER.index(own))
    assert not wrong, f"{own} stands below {wrong} in ORDER and must not import from there"


def test_every_public_name_can_be_had() -> None:
    assert all(hasattr(llsa_gen, name) for name in llsa_gen.__all__)


@FILES
def test_only_jit_knows_the_compilers(path: Path) -> None:
    if room_of(module_name(path)) != "jit":
        assert not COMPILERS & {name.split(".")[0] for name in imports_of(path)}


LAZY = {
    "package": "import llsa_gen",
    "spec": "from llsa_gen.spec import Spec; Spec(levels=3, topk='max(4, 16 // 2**l)').slug",
    "catalogue": "from llsa_gen.catalog import catalogue_specs; assert catalogue_specs()",
    **{
        f"llsa-gen {verb}": f"import llsa_gen.cli; sys.argv = ['llsa-gen', '{verb}']; llsa_gen.cli.main()"
        for verb in ("list", "--help", "--version")
    },
}
"""What must answer well under a second, which it does as long as it imports nothing heavy."""


@pytest.mark.parametrize("program", LAZY.values(), ids=LAZY)
def test_light_work_imports_nothing_heavy(program: str) -> None:
    report = f"print(json.dumps(sorted({HEAVY!r} & set(sys.modules))), file=sys.stderr)"
    script = f"import atexit, json, sys\natexit.register(lambda: {report})\n{program}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stderr.splitlines()[-1]) == []


@FILES
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_functions_are_short() -> None:
    lengths = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                lengths[f"{module_name(path)}:{node.lineno} {node.name}"] = length
    ranked = sorted(lengths, key=lengths.__getitem__)
    percentile = lengths[ranked[ceil(SHARE_OF_SHORT_FUNCTIONS * len(ranked)) - 1]]
    longest = "\n".join(f"{lengths[name]:4} {name}" for name in ranked[:-11:-1])
    assert percentile <= LONG_FUNCTION, f"the longest functions:\n{longest}"


STATED_AGAIN = {
    "STRIDE_UNIT": (STRIDE_UNIT, ("llsa_gen/jit/flavour.py", "llsa_gen/jit/lanes.py")),
    "STRIP": (STRIP, tuple(f"templates/tvm/{name}.py.jinja" for name in ("attend_grad_kv", "segments", "select"))),
}
"""Numbers that belong to the text of a kernel, or to what it is spoken in, and that others reckon with."""


@pytest.mark.parametrize("name", STATED_AGAIN)
def test_a_number_of_the_kernels_is_the_same_wherever_it_is_stated(name: str) -> None:
    value, places = STATED_AGAIN[name]
    stated = re.compile(rf"^{name} = (\d+)\b", re.MULTILINE)
    found = {place: stated.findall((ROOT / place).read_text(encoding="utf-8")) for place in places}
    assert found == {place: [str(value)] for place in places}


def test_every_source_file_says_its_licence() -> None:
    sources = [path for path in text_files() if path.suffix not in UNHEADED_SUFFIXES and path.name not in UNHEADED]
    heads = {path: path.read_text(encoding="utf-8").splitlines()[:2] for path in sources}
    missing = [str(path.relative_to(ROOT)) for path, head in heads.items() if not any(HEADER in line for line in head)]
    assert not missing, f"the first line, or the one after #!, must be `# {HEADER}`"


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)
