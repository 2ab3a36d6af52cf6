# SPDX-License-Identifier: Apache-2.0
"""The mutation set of the kernels for CPUs: small faults of their templates, each with the law that it must break.

They are those of `mutants.py` and `gradient_mutants.py` as far as these templates can have them, and what is easily
wrong where queries or keys are lanes of a vector. None of them writes behind the end of a tensor.
"""

from tests.kernels.gradient_mutants import GIVEN, INVERTED, MOST_SELECT, NO_KEYS
from tests.kernels.mutants import Edit, Mutant

LISTS = "attention_given_lists"
CONSTANT = "dense_where_coarsest_nodes_are_constant"
SELECTS = "selection_reaches_the_best_scores"
BEHIND = "nothing_is_read_behind_the_end"
PRESERVED = "constant_values_are_preserved"


def _edit(name: str, template: str, old: str, new: str, killed_by: str, *, only: str = "", times: int = 1) -> Mutant:
    return Mutant(f"cpu_{name}", template, (Edit(old, new, times),), killed_by, only, "tvm")


JOINED_LISTS, JOINED_GRADIENTS = "joined_attention_given_lists", "joined_gradients_given_lists"
_ENTRY = "idx_{{ level + 1 }}_view[tile * rows // BLOCK**{{ level + 1 }}, n]"
_PLACE = f"place[found[0]] = {_ENTRY} * BLOCK + part * strip"
_KEYS_OF_STRIP = "size[first + s],\n                    strip,\n                    q_t,"
_VALUES_OF_STRIP = (
    "size[first + g * group + s],\n                                strip,\n                                sums,"
)
_QUERIES_OF_STRIP = (
    "count - g * GROUP - s * STRIP,\n                                STRIP,\n                                sums,"
)
_PULL = "pull[i] = T.Select(first + i < nodes - 1, number(PULL[level]), tail_pull)"
_DIVIDED = '/ T.Select(first[0] + i < nodes - 1, number(float(BLOCK**level)), T.Cast("float32", tail_tokens))'

_FORWARD: tuple[Mutant, ...] = (
    _edit(
        "gathered_nodes_weigh_one",
        "segments",
        "weigh(size, pull, found[0], PULL[{{ level }}], ",
        "weigh(size, pull, found[0], 0.0, ",
        CONSTANT,
        only="attend_coarse",
    ),
    _edit(
        "coarsest_nodes_weigh_one",
        "segments",
        "weigh(row_size, row_pull, s, PULL[DENSE], ",
        "weigh(row_size, row_pull, s, 0.0, ",
        CONSTANT,
        only="attend_coarse",
    ),
    _edit(
        "ragged_nodes_weigh_like_complete_ones",
        "segments",
        "T.Select(j < size[at], tail, number(NO_NODE))",
        "T.Select(j < size[at], number(whole), number(NO_NODE))",
        CONSTANT,
        only="attend_coarse",
    ),
    _edit(
        "every_strip_of_a_part_weighs_like_its_first",
        "segments",
        "affine(scale * number(LOG2_E), pull, (first + s) * strip)",
        "affine(scale * number(LOG2_E), pull, first * strip)",
        CONSTANT,
        only="attend_coarse",
    ),
    _edit(
        "nodes_behind_the_end_of_a_strip_have_weight",
        "segments",
        "if size[at] <= strip:",
        "if size[at] < 0:",
        LISTS,
        only="attend_coarse",
    ),
    Mutant(
        "cpu_keys_behind_the_end_of_a_strip_are_read",
        "segments",
        (
            Edit(_KEYS_OF_STRIP, _KEYS_OF_STRIP.replace("size[first + s]", "strip")),
            Edit("for j in T.serial(T.max(strip - size[first + s], 0)):", "for j in T.serial(0):"),
        ),
        BEHIND,
        "attend_fine",
        "tvm",
    ),
    _edit(
        "values_behind_the_end_of_a_strip_are_read",
        "segments",
        _VALUES_OF_STRIP,
        _VALUES_OF_STRIP.replace("size[first + g * group + s]", "strip"),
        BEHIND,
        only="attend_fine",
    ),
    _edit(
        "only_the_first_of_rows_abreast_has_mass",
        "attend",
        "for c in T.unroll(chains - 1):",
        "for c in T.unroll(0):",
        LISTS,
        only="attend_fine",
    ),
    _edit(
        "the_last_entry_of_a_list_is_left_out",
        "segments",
        "for n in T.serial(TOPK[{{ level + 1 }}]):",
        "for n in T.serial(TOPK[{{ level + 1 }}] - 1):",
        LISTS,
        only="attend_fine",
    ),
    Mutant(
        "cpu_missing_entries_list_the_first_node",
        "segments",
        (
            Edit(f"if {_ENTRY} >= 0:", f"if {_ENTRY} >= -1:"),
            Edit(_PLACE, _PLACE.replace(_ENTRY, f"T.max({_ENTRY}, 0)")),
        ),
        LISTS,
        "attend_fine",
        "tvm",
    ),
    _edit("children_begin_one_too_late", "segments", _PLACE, f"{_PLACE} + 1", LISTS, only="attend_fine"),
    _edit(
        "lists_of_the_wrong_row_are_read",
        "segments",
        _PLACE,
        _PLACE.replace("tile * rows // BLOCK**{{ level + 1 }}", "T.max(tile * rows // BLOCK**{{ level + 1 }} - 1, 0)"),
        LISTS,
        only="attend_fine",
    ),
    _edit(
        "the_last_strip_of_coarsest_nodes_is_left_out",
        "segments",
        "T.ceildiv(nodes_k_{{ stage.dense }} - part * keys, strip)",
        "T.truncdiv(nodes_k_{{ stage.dense }} - part * keys, strip)",
        LISTS,
        only="attend_coarse",
        times=3,
    ),
    _edit(
        "refined_nodes_stay",
        "segments",
        "scores[s * strip + offset[0], g * members + i] = number(NO_NODE)",
        "scores[s * strip + offset[0], g * members + i] = scores[s * strip + offset[0], g * members + i]",
        CONSTANT,
        only="attend_coarse",
    ),
    _edit(
        "refined_nodes_are_left_out_for_the_first_lane_alone",
        "segments",
        "for i in T.serial(members):",
        "for i in T.serial(1):",
        LISTS,
        only="attend_coarse",
    ),
    _edit(
        "all_lanes_leave_out_what_the_first_refines",
        "segments",
        "T.min((tile * rows + g * members) // span, nodes - 1)",
        "T.min(tile * rows // span, nodes - 1)",
        LISTS,
        only="attend_coarse",
    ),
    _edit(
        "all_lanes_are_the_first_query",
        "segments",
        "transpose(q_view, tile * rows, len_q - 1,",
        "transpose(q_view, tile * rows, tile * rows,",
        LISTS,
        only="attend_fine",
    ),
    _edit(
        "tokens_weigh_like_the_nodes_above_them",
        "segments",
        "weigh(size, pull, found[0], PULL[{{ level }}], ",
        "weigh(size, pull, found[0], PULL[{{ level or 1 }}], ",
        JOINED_LISTS,
        only="attend_whole",
    ),
    _edit(
        "the_coarsest_nodes_have_the_values_of_tokens",
        "segments",
        "absorb(k{{ pools }}_view, v{{ pools }}_view, row_place",
        "absorb(k{{ pools }}_view, v_view, row_place",
        JOINED_LISTS,
        only="attend_whole",
    ),
    _edit(
        "strides_of_v_are_swapped",
        "views",
        "{{ view.name }}_sn, 1)",
        '{{ view.name }}_{{ "sh" if view.name == "v" else "sn" }}, 1)',
        "values_by_their_own_strides",
    ),
    _edit(
        "the_carry_is_ignored",
        "attend",
        "carried[i] = lse_carry_view[T.min(tile * rows + i, len_q - 1)] * number(LOG2_E)",
        "carried[i] = number(NO_NODE)",
        LISTS,
    ),
    _edit(
        "the_carry_keeps_its_old_scale",
        "attend",
        "number(0.0), exp2(carried[i] - peak[i]))",
        "number(0.0), number(1.0))",
        LISTS,
    ),
    _edit(
        "the_last_group_alone_is_kept",
        "segments",
        "if begun[0] == 1:",
        "if begun[0] == 2:",
        LISTS,
        only="attend_coarse",
    ),
    _edit(
        "the_output_is_not_rescaled",
        "attend",
        "out[i, d] = out[i, d] * rescale[i]",
        "out[i, d] = out[i, d] * number(1.0)",
        LISTS,
    ),
    _edit(
        "candidates_behind_the_end_are_taken",
        "select",
        "for j in T.serial(T.min(strip, nodes_k - begin)):",
        "for j in T.serial(strip):",
        SELECTS,
    ),
    _edit(
        "one_entry_too_few_is_taken",
        "select",
        "for n in T.serial(topk):\n                    for",
        "for n in T.serial(topk - 1):\n                    for",
        SELECTS,
    ),
    _edit(
        "candidates_begin_one_too_late",
        "select",
        "n] * BLOCK + part * strip",
        "n] * BLOCK + part * strip + 1",
        SELECTS,
    ),
    _edit(
        "all_lanes_select_for_the_first_row",
        "select",
        "transpose(q_pools_view, first_q + tile * rows, first_q + nodes_q - 1,",
        "transpose(q_pools_view, first_q + tile * rows, first_q + tile * rows,",
        SELECTS,
    ),
    _edit(
        "ties_go_to_the_highest_id",
        "select",
        "rival_ids[i] < kept_ids[n, i]",
        "rival_ids[i] > kept_ids[n, i]",
        "ties_go_to_the_lowest_id",
    ),
    _edit(
        "nan_does_not_rank",
        "select",
        "T.Select(scores[j, i] > number(LOWEST), scores[j, i], number(LOWEST))",
        "scores[j, i]",
        "nan_ranks_last",
    ),
    _edit(
        "ragged_means_are_divided_by_a_whole_block",
        "coarsen",
        "return T.max(T.min(tokens - node * span, span), 1)",
        "return span",
        PRESERVED,
    ),
    _edit(
        "the_last_child_is_not_folded",
        "coarsen",
        "for r in T.serial(BLOCK - 1):",
        "for r in T.serial(BLOCK - 2):",
        PRESERVED,
    ),
)
"""Faults of the forward pass."""

_BACKWARD: tuple[Mutant, ...] = (
    _edit(
        "pooled_nodes_of_lists_have_the_logits_of_tokens",
        "segments",
        "score(k{{ suffix }}_view, v{{ suffix }}_view, place",
        "score(k_view, v{{ suffix }}_view, place",
        JOINED_GRADIENTS,
        only="attend_grad_q_whole",
    ),
    _edit(
        "gradient_of_q_lacks_what_all_keys_share", "attend_grad_q", "(grads[j, i] - shared[i])", "grads[j, i]", GIVEN
    ),
    _edit(
        "gradient_of_q_lacks_the_scale",
        "attend_grad_q",
        "out[i, d] * scale",
        "out[i, d]",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "gradient_of_q_ignores_the_carry",
        "attend_grad_q",
        '{{ " + q_grad_carry_view[tile * rows + i, d]" if stage.carry }}',
        "",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "all_keys_of_a_strip_get_the_gradient_of_the_first",
        "attend_grad_q",
        "(grads[j, i] - shared[i])",
        "(grads[0, i] - shared[i])",
        GIVEN,
    ),
    _edit(
        "queries_without_keys_have_a_normaliser",
        "attend_grad_q",
        "T.Select(norm[i] == number(NO_NODE), number(NO_QUERY), norm[i] * number(LOG2_E))",
        "norm[i] * number(LOG2_E)",
        NO_KEYS,
        only="attend_grad_q_fine",
    ),
    _edit("the_gradient_of_lse_is_forgotten", "delta", "total[0] - lse_grad_view[tile * rows + i]", "total[0]", GIVEN),
    _edit(
        "gradient_of_keys_lacks_weights_of_coarsest_nodes",
        "attend_grad_kv",
        _PULL,
        "pull[i] = number(0.0)",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "gradient_of_keys_takes_a_ragged_node_for_a_complete_one",
        "attend_grad_kv",
        _PULL,
        "pull[i] = number(PULL[level])",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_keys_keeps_refined_nodes",
        "attend_grad_kv",
        "shares[j, offset[0]] = number(NO_NODE)",
        "shares[j, offset[0]] = shares[j, offset[0]]",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "queries_behind_the_last_whole_group_give_nothing",
        "attend_grad_kv",
        "for g in T.serial(T.ceildiv(count, GROUP)):",
        "for g in T.serial(T.truncdiv(count, GROUP)):",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "queries_behind_the_end_of_a_strip_give_something",
        "attend_grad_kv",
        _QUERIES_OF_STRIP,
        _QUERIES_OF_STRIP.replace("count - g * GROUP - s * STRIP", "STRIP"),
        "gradients_read_nothing_behind_the_end",
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_keys_lacks_what_all_keys_share",
        "attend_grad_kv",
        "grads[j, i] - delta_view[begin + j]",
        "grads[j, i]",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_keys_lacks_the_scale",
        "attend_grad_kv",
        '("k", "HEAD_DIM", " * scale")',
        '("k", "HEAD_DIM", "")',
        GIVEN,
    ),
    _edit(
        "gradient_of_tokens_lacks_what_their_parents_get",
        "attend_grad_kv",
        "+ {{ operand }}_above_view[parent[0], d]",
        "+ number(0.0)",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_nodes_is_not_divided_among_tokens",
        "attend_grad_kv",
        _DIVIDED,
        "/ number(1.0)",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "every_part_of_a_long_list_is_the_first",
        "attend_grad_kv",
        " + (slot[0] - part_offsets_view[parent[0]]) * limit",
        "",
        MOST_SELECT,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "the_last_part_of_a_long_list_is_not_added",
        "merge_grad_kv",
        "count[0] = part_offsets_view[parent[0] + 1] - slot[0]",
        "count[0] = part_offsets_view[parent[0] + 1] - slot[0] - 1",
        MOST_SELECT,
        only="merge_grad_kv_fine",
    ),
    _edit(
        "tokens_of_a_long_list_lack_what_their_parents_get",
        "merge_grad_kv",
        "+ {{ operand }}_above_view[parent[0], d * lanes + l]",
        "+ number(0.0)",
        MOST_SELECT,
        only="merge_grad_kv_fine",
    ),
    _edit(
        "the_first_piece_of_the_queries_is_not_added",
        "merge_grad_kv",
        "for part in T.serial(count):",
        "for part in T.serial(1, count):",
        GIVEN,
        only="merge_grad_kv_all",
    ),
    _edit(
        "gradient_of_a_ragged_coarsest_node_is_divided_among_a_whole_one",
        "merge_grad_kv",
        "T.Select(item * keys + i < nodes - 1, span, tail_tokens)",
        "span",
        GIVEN,
        only="merge_grad_kv_all",
    ),
    Mutant(
        "cpu_missing_entries_select_the_first_node",
        "invert_index",
        (
            Edit("node[0] = idx_view[entry[0]]", "node[0] = T.max(idx_view[entry[0]], 0)"),
            Edit("node[0] = idx_view[row[0] * topk + n]", "node[0] = T.max(idx_view[row[0] * topk + n], 0)"),
        ),
        INVERTED,
        language="tvm",
    ),
    _edit(
        "rows_of_a_chunk_descend",
        "invert_index",
        "row[0] = chunk * T.ceildiv(nodes_q, CHUNKS) + r",
        "row[0] = chunk * T.ceildiv(nodes_q, CHUNKS) + members(nodes_q, chunk) - 1 - r",
        INVERTED,
    ),
    _edit(
        "all_chunks_begin_where_the_first_does",
        "invert_index",
        "place[i] = place[i] + line[c, i]",
        "place[i] = place[i] + 0",
        INVERTED,
    ),
    _edit(
        "one_launch_descends",
        "invert_index",
        "rows_view[cursors[node[0]]] = row\n",
        "rows_view[cursors[node[0]]] = nodes_q - 1 - row\n",
        INVERTED,
    ),
    _edit(
        "one_launch_marks_no_place_behind_the_last_entry",
        "invert_index",
        "rows_view[first[0] + r] = NO_NODE",
        "rows_view[first[0] + r] = 0",
        INVERTED,
    ),
    _edit(
        "a_list_has_one_part_too_few",
        "invert_index",
        "T.ceildiv(total[i], part_entries)",
        "T.truncdiv(total[i], part_entries)",
        MOST_SELECT,
    ),
    _edit(
        "one_launch_makes_one_part_too_few",
        "invert_index",
        "T.ceildiv(cursors[j], part_entries)",
        "T.truncdiv(cursors[j], part_entries)",
        MOST_SELECT,
    ),
)
"""Faults of the backward pass, and of inverted lists."""

LANE_MUTANTS = _FORWARD + _BACKWARD
"""Every fault of the kernels for CPUs that the laws must notice."""
