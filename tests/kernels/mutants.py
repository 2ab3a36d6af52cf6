# SPDX-License-Identifier: Apache-2.0
"""The mutation set: small faults of the templates, each with the law that it must break.

Every one of them is a mistake that is easily made in a kernel of this kind. `MUTANTS` is the one place that lists them;
a template that is rewritten needs its rows here rewritten with it, and `edited` says so.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from llsa_gen import paths
from llsa_gen.codegen import heading
from llsa_gen.jit import compile as compiler
from llsa_gen.ops import launch
from llsa_gen.ops.calls import forget_passes
from llsa_gen.targets import CPU_TARGETS, Language, get_target
from tests.tree import ROOT

render = import_module("llsa_gen.codegen.render")  # the package gives this name to the function in it


@dataclass(frozen=True)
class Edit:
    """One substitution.

    Attributes:
        old: Text of the template.
        new: What replaces it.
        times: How often `old` occurs.
    """

    old: str
    new: str
    times: int = 1


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: What is wrong.
        template: Stem of the template.
        edits: How it is made wrong.
        killed_by: Name of the law that breaks.
        only: The kernel whose generated file is made wrong; the others of the same template stay right. All if empty.
        language: What the template is written in: that of GPUs and their emulation, or that of CPUs.
    """

    name: str
    template: str
    edits: tuple[Edit, ...]
    killed_by: str
    only: str = ""
    language: Language = "tilelang"

    @property
    def target(self) -> str:
        """The target whose kernels are made wrong, on a CPU."""
        return next(name for name in CPU_TARGETS if get_target(name).language == self.language)


def _mutant(name: str, template: str, old: str, new: str, killed_by: str, *, only: str = "", times: int = 1) -> Mutant:
    return Mutant(name, template, (Edit(old, new, times),), killed_by, only)


_TAKEN = "scores[i, j] == best[i], ids[j], NO_ID)"
_KEPT = "kept[i, j] == best[i], kept_ids[i, j], NO_ID)"

MUTANTS: tuple[Mutant, ...] = (
    _mutant(
        "gathered_nodes_weigh_one",
        "segments",
        "= PULL[level]",
        "= 0.0",
        "dense_where_coarsest_nodes_are_constant",
        only="attend_coarse",
    ),
    _mutant(
        "coarsest_nodes_weigh_one",
        "segments",
        "                        PULL[DENSE],",
        "                        0.0,",
        "dense_where_coarsest_nodes_are_constant",
    ),
    _mutant(
        "ragged_gathered_node_weighs_like_a_complete_one",
        "segments",
        "= tail[level]",
        "= PULL[level]",
        "dense_where_coarsest_nodes_are_constant",
        only="attend_coarse",
    ),
    _mutant(
        "ragged_coarsest_node_weighs_like_a_complete_one",
        "segments",
        "tail[DENSE], NO_NODE)",
        "PULL[DENSE], NO_NODE)",
        "dense_where_coarsest_nodes_are_constant",
    ),
    _mutant(
        "tokens_behind_the_end_are_attended",
        "segments",
        "r < chunk_size[t * tile_chunks + c], chunk_tail_pull",
        "r >= 0, chunk_tail_pull",
        "attention_given_lists",
        only="attend_fine",
    ),
    _mutant(
        "coarsest_nodes_behind_the_end_are_attended",
        "segments",
        "t * keys + j < nodes[DENSE], tail[DENSE]",
        "j >= 0, tail[DENSE]",
        "attention_given_lists",
    ),
    _mutant(
        "keys_are_read_behind_the_end",
        "views",
        '            ({{ view.shape | join(", ") }}),',
        '            ({{ view.shape | join(", ") | replace("places", "places + 8") }}),',
        "nothing_is_read_behind_the_end",
        only="attend_fine",
    ),
    _mutant(
        "the_last_entry_of_a_list_is_left_out",
        "segments",
        "on.parallel(TOPK[level + 1], parts)",
        "on.parallel(TOPK[level + 1] - 1, parts)",
        "attention_given_lists",
        only="attend_fine",
    ),
    _mutant(
        "children_begin_one_too_late",
        "segments",
        "base[level] + parent * BLOCK + part * chunk",
        "base[level] + parent * BLOCK + part * chunk + 1",
        "attention_given_lists",
        only="attend_fine",
    ),
    _mutant(
        "lists_of_the_wrong_row_are_read",
        "segments",
        "tile * rows // BLOCK ** (level + 1), s]",
        "tile * rows // BLOCK ** (level + 1) + 1, s]",
        "attention_given_lists",
        only="attend_fine",
    ),
    _mutant(
        "the_lists_of_a_level_below_are_read",
        "segments",
        "tile * rows // BLOCK ** (level + 1), s]",
        "tile * rows // BLOCK**level, s]",
        "attention_given_lists",
        only="attend_coarse",
    ),
    _mutant(
        "strides_of_v_are_swapped",
        "views",
        "{% for stride in view.strides %}",
        '{% for stride in (view.strides if view.name != "v" else view.strides[::2] + view.strides[1:2]) %}',
        "values_by_their_own_strides",
    ),
    _mutant(
        "the_carry_is_ignored",
        "attend",
        "peak[i] = lse_carry_view[entry, head, tile * rows + i] * LOG2_E",
        "peak[i] = NO_NODE",
        "attention_given_lists",
    ),
    _mutant(
        "refined_gathered_nodes_stay",
        "segments",
        "== chunk_place[t * tile_chunks + c] + r,\n                            NO_NODE,",
        "== chunk_place[t * tile_chunks + c] + r,\n                            scores[i, c * chunk + r],",
        "dense_where_coarsest_nodes_are_constant",
    ),
    _mutant(
        "refined_coarsest_nodes_stay",
        "segments",
        "== base[DENSE] + t * keys + j,\n                            NO_NODE,",
        "== base[DENSE] + t * keys + j,\n                            scores[i, j],",
        "dense_where_coarsest_nodes_are_constant",
    ),
    _mutant(
        "candidates_behind_the_end_are_taken",
        "select",
        "T.if_then_else(ids[j] < nodes_k, scores[i, j], NO_SCORE)",
        "scores[i, j]",
        "selection_reaches_the_best_scores",
    ),
    _mutant(
        "one_entry_too_few_is_taken",
        "select",
        "for n in T.serial(topk):",
        "for n in T.serial(topk - 1):",
        "selection_reaches_the_best_scores",
    ),
    _mutant(
        "candidates_begin_one_too_late",
        "select",
        "chunk_place[s * parts + part] = parent * BLOCK + part * chunk",
        "chunk_place[s * parts + part] = parent * BLOCK + part * chunk + 1",
        "selection_reaches_the_best_scores",
    ),
    _mutant(
        "parents_of_the_next_row_are_read",
        "select",
        "parents_view[entry, head, tile, s]",
        "parents_view[entry, head, tile + 1, s]",
        "selection_reaches_the_best_scores",
    ),
    Mutant(
        "ties_go_to_the_highest_id",
        "select",
        (
            Edit(_TAKEN, _TAKEN.replace("NO_ID", "-1")),
            Edit(_KEPT, _KEPT.replace("NO_ID", "-1")),
            Edit("T.reduce_min(", "T.reduce_max(", 2),
            Edit("T.min(winner[i], winner_kept[i])", "T.max(winner[i], winner_kept[i])"),
        ),
        "ties_go_to_the_lowest_id",
    ),
    _mutant(
        "nan_does_not_rank",
        "select",
        "T.if_then_else(scores[i, j] > LOWEST, scores[i, j], LOWEST)",
        "scores[i, j]",
        "nan_ranks_last",
    ),
    _mutant(
        "ragged_means_are_divided_by_a_whole_block",
        "coarsen",
        "return T.max(T.min(tokens - node * span, span), 1)",
        "return span",
        "constant_values_are_preserved",
    ),
    _mutant(
        "tokens_behind_the_end_are_summed",
        "coarsen",
        "(batch, length, heads, width),",
        "(batch, length + BLOCK, heads, width),",
        "nothing_is_read_behind_the_end",
    ),
)
"""Every fault of the forward pass that the laws must notice."""


def edited(mutant: Mutant, text: str) -> str:
    """The text of a template with the fault in it.

    Raises:
        AssertionError: An edit does not apply as often as it says.
    """
    for edit in mutant.edits:
        found = text.count(edit.old)
        assert found == edit.times, f"{mutant.name}: {found} times in {mutant.template}, not {edit.times}: {edit.old}"
        new = edit.new
        if mutant.only:  # empty expressions keep the spaces before a block and the line break behind it
            condition = f'{{% if stage.name == "{mutant.only}" %}}'
            new = f'{{{{ "" }}}}{condition}{edit.new}{{% else %}}{edit.old}{{% endif %}}{{{{ "" }}}}'
        text = text.replace(edit.old, new)
    return text


def write_templates(mutant: Mutant | None, folder: Path) -> None:
    """Copies the templates, with the fault of a mutant in one of them."""
    shutil.copytree(ROOT / "templates", folder)
    if mutant is not None:
        path = folder / mutant.language / f"{mutant.template}.py.jinja"
        path.write_text(edited(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")


@contextmanager
def generated_anew(kernels: Path) -> Iterator[pytest.MonkeyPatch]:
    """Forgets what was generated, before and after, and keeps compiled kernels in a folder of their own.

    The kernels are compiled with little optimisation: they are many, and speed is not what is tested.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "CPU_FLAGS", ("-O1", *compiler.CPU_FLAGS[1:]))
        patch.setenv(paths.CACHE_VARIABLE, str(kernels))
        _forget()
        try:
            yield patch
        finally:
            _forget()


@contextmanager
def templates_of(mutant: Mutant | None, folder: Path, kernels: Path) -> Iterator[None]:
    """Generates from the templates of a mutant, whose kernels then run, or from a plain copy of them."""
    write_templates(mutant, folder)
    with generated_anew(kernels) as patch:
        if mutant is not None:
            patch.setattr(launch, "CPU_TARGET", mutant.target)
        for module in (heading, render):
            patch.setattr(module, "templates_dir", lambda: folder)
        yield


def _forget() -> None:
    """Empties what remembers templates, and what was generated from them."""
    for memory in (render.render, render._environment, heading.template_digest):
        memory.cache_clear()
    forget_passes()
