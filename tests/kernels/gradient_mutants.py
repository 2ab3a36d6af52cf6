# SPDX-License-Identifier: Apache-2.0
"""The mutation set of the backward pass: small faults of the templates, each with the law that it must break.

Those of the forward pass are in `mutants.py`, which says how a fault is made.
"""

from tests.kernels.mutants import Edit, Mutant

GIVEN = "gradients_given_lists"
MOST_SELECT = "gradients_of_a_block_that_most_select"
STRIDES = "gradients_by_their_own_strides"
NO_KEYS = "queries_without_keys_give_nothing"
INVERTED = "lists_are_inverted_in_order"

_ABOVE = " + {{ operand }}_above_view[entry, head, parent, d]"


def _edit(name: str, template: str, old: str, new: str, killed_by: str, *, only: str = "", times: int = 1) -> Mutant:
    return Mutant(name, template, (Edit(old, new, times),), killed_by, only)


def _swapped(name: str, template: str, view: str, stage: str) -> Mutant:
    """Strides of one tensor in another order, in one kernel."""
    is_meant = f'view.name == "{view}" and stage.name == "{stage}"'
    new = f"{{% for stride in (view.strides[::2] + view.strides[1:2] if {is_meant} else view.strides) %}}"
    return _edit(name, template, "{% for stride in view.strides %}", new, STRIDES)


_QUERIES: tuple[Mutant, ...] = (
    _edit(
        "gradient_of_q_lacks_weights_of_gathered_nodes",
        "segments",
        "= PULL[level]",
        "= 0.0",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_lacks_weights_of_coarsest_nodes",
        "segments",
        "                        PULL[DENSE],",
        "                        0.0,",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_takes_a_ragged_node_for_a_complete_one",
        "segments",
        "tail[DENSE], NO_NODE)",
        "PULL[DENSE], NO_NODE)",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_leaves_out_the_last_tile_of_coarsest_nodes",
        "segments",
        "on.pipelined(T.ceildiv(nodes[DENSE], keys), min(stages, 1))",
        "on.pipelined(T.ceildiv(nodes[DENSE], keys) - 1, min(stages, 1))",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_keeps_refined_gathered_nodes",
        "segments",
        "== chunk_place[t * tile_chunks + c] + r,\n                            NO_NODE,",
        "== chunk_place[t * tile_chunks + c] + r,\n                            scores[i, c * chunk + r],",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_keeps_refined_coarsest_nodes",
        "segments",
        "== base[DENSE] + t * keys + j,\n                            NO_NODE,",
        "== base[DENSE] + t * keys + j,\n                            scores[i, j],",
        GIVEN,
        only="attend_grad_q_coarse",
    ),
    _edit(
        "gradient_of_q_leaves_out_the_last_entry_of_a_list",
        "segments",
        "on.parallel(TOPK[level + 1], parts)",
        "on.parallel(TOPK[level + 1] - 1, parts)",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "gradient_of_q_begins_children_one_too_late",
        "segments",
        "base[level] + parent * BLOCK + part * chunk",
        "base[level] + parent * BLOCK + part * chunk + 1",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "gradient_of_q_reads_lists_of_the_wrong_row",
        "segments",
        "tile * rows // BLOCK ** (level + 1), s]",
        "tile * rows // BLOCK ** (level + 1) + 1, s]",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _swapped("gradient_of_q_swaps_strides_of_v", "views", "v", "attend_grad_q_fine"),
    _edit(
        "gradient_of_q_lacks_what_all_keys_share",
        "attend_grad_q",
        "(grads[i, j] - shared[i])",
        "grads[i, j]",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "gradient_of_q_lacks_the_scale",
        "attend_grad_q",
        "0.0, out[i, d] * scale)",
        "0.0, out[i, d])",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "gradient_of_q_ignores_the_carry",
        "attend_grad_q",
        "out[i, d] += q_grad_carry_view[entry, head, tile * rows + i, d]",
        "out[i, d] += 0.0",
        GIVEN,
        only="attend_grad_q_fine",
    ),
    _edit(
        "queries_without_keys_have_a_normaliser",
        "attend_grad_q",
        "T.if_then_else(norm[i] == NO_NODE, NO_QUERY, norm[i] * LOG2_E)",
        "norm[i] * LOG2_E",
        NO_KEYS,
        only="attend_grad_q_fine",
    ),
    _edit(
        "the_gradient_of_lse_is_forgotten",
        "delta",
        "total[i] - lse_grad_view[entry, head, tile * rows + i]",
        "total[i]",
        GIVEN,
    ),
    _swapped("delta_swaps_strides_of_o", "views", "o", "delta"),
)
"""Faults of the gradient of queries, and of what all gradients share."""

_KEYS: tuple[Mutant, ...] = (
    _edit(
        "gradient_of_keys_lacks_weights_of_coarsest_nodes",
        "attend_grad_kv",
        "pull[i] = T.if_then_else(first + i < nodes - 1, PULL[level], tail_pull)",
        "pull[i] = 0.0",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "gradient_of_keys_lacks_weights_of_gathered_nodes",
        "attend_grad_kv",
        "pull[i] = T.if_then_else(first + i < nodes - 1, PULL[level], tail_pull)",
        "pull[i] = 0.0",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_keys_takes_a_ragged_node_for_a_complete_one",
        "attend_grad_kv",
        "pull[i] = T.if_then_else(first + i < nodes - 1, PULL[level], tail_pull)",
        "pull[i] = PULL[level]",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "coarsest_keys_get_no_gradient",
        "attend_grad_kv",
        "tiles = T.max(T.min(T.ceildiv(len_q - origin, rows), piece_tiles), 0)",
        "tiles = T.min(len_q, 0)",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "gradient_of_keys_keeps_refined_coarsest_nodes",
        "attend_grad_kv",
        "T.if_then_else(refined[j // unit, s] == first + i, NO_NODE, scores[i, j])",
        "scores[i, j]",
        GIVEN,
        only="attend_grad_kv_all",
    ),
    _edit(
        "gradient_of_keys_keeps_refined_gathered_nodes",
        "attend_grad_kv",
        "T.if_then_else(refined[j // unit, s] == first + i, NO_NODE, scores[i, j])",
        "scores[i, j]",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_keys_reads_own_lists_of_the_wrong_row",
        "attend_grad_kv",
        "(place(origin, step, t, c) + u * unit) // share, s",
        "(place(origin, step, t, c) + u * unit) // (share * BLOCK), s",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_tokens_lacks_what_their_parents_get",
        "attend_grad_kv",
        f"{{{{ operand }}}}_sum[i, d]{_ABOVE}, on.stored(DTYPE)",
        "{{ operand }}_sum[i, d], on.stored(DTYPE)",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_nodes_lacks_what_their_parents_get",
        "attend_grad_kv",
        f"/ tokens[i]{_ABOVE}",
        "/ tokens[i]",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "all_tokens_get_what_the_first_parent_gets",
        "attend_grad_kv",
        f"{{{{ operand }}}}_sum[i, d]{_ABOVE}, on.stored(DTYPE)",
        "{{ operand }}_sum[i, d] + {{ operand }}_above_view[entry, head, 0, d], on.stored(DTYPE)",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_nodes_is_not_divided_among_tokens",
        "attend_grad_kv",
        "{{ operand }}_sum[i, d] / tokens[i]",
        "{{ operand }}_sum[i, d]",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_a_ragged_node_is_divided_among_a_whole_one",
        "attend_grad_kv",
        'T.if_then_else(first + i < nodes - 1, float(BLOCK**level), T.cast(tail_tokens, "float32"))',
        "float(BLOCK**level)",
        GIVEN,
        only="attend_grad_kv_lists",
    ),
    _edit(
        "gradient_of_keys_lacks_the_scale",
        "attend_grad_kv",
        "k_sum[i, d] = k_sum[i, d] * scale",
        "k_sum[i, d] = k_sum[i, d]",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "gradient_of_keys_lacks_what_all_keys_share",
        "attend_grad_kv",
        "grads[i, j] - delta_tile[j])",
        "grads[i, j])",
        GIVEN,
        only="attend_grad_kv_fine",
    ),
    _swapped("gradient_of_v_swaps_strides_of_v", "attend_grad_kv", "v", "attend_grad_kv_fine"),
    _edit(
        "every_part_of_a_long_list_is_the_first",
        "attend_grad_kv",
        " + (slot - part_offsets_view[entry, head, parent]) * limit",
        "",
        MOST_SELECT,
        only="attend_grad_kv_fine",
    ),
    _edit(
        "the_last_part_of_a_long_list_goes_on_into_the_next",
        "attend_grad_kv",
        "count = T.min(offsets_view[entry, head, parent + 1] - begin, limit)",
        "count = limit",
        MOST_SELECT,
        only="attend_grad_kv_fine",
    ),
)
"""Faults of the gradients of keys and values."""

_SUMS: tuple[Mutant, ...] = (
    _edit(
        "the_last_part_of_a_long_list_is_not_added",
        "merge_grad_kv",
        "count = part_offsets_view[entry, head, parent + 1] - slot",
        "count = part_offsets_view[entry, head, parent + 1] - slot - 1",
        MOST_SELECT,
        only="merge_grad_kv_fine",
    ),
    _edit(
        "tokens_of_a_long_list_lack_what_their_parents_get",
        "merge_grad_kv",
        f"{{{{ operand }}}}_sum[i, d]{_ABOVE}, on.stored(DTYPE)",
        "{{ operand }}_sum[i, d], on.stored(DTYPE)",
        MOST_SELECT,
        only="merge_grad_kv_fine",
    ),
    _edit(
        "the_first_piece_of_the_queries_is_not_added",
        "merge_grad_kv",
        "for piece in T.serial(PIECES):",
        "for piece in T.serial(1, PIECES):",
        GIVEN,
        only="merge_grad_kv_all",
    ),
    _edit(
        "gradient_of_coarsest_nodes_is_not_divided_among_tokens",
        "merge_grad_kv",
        "{{ operand }}_grad_view[entry, head, tile * keys + i, d] = {{ operand }}_sum[i, d] / tokens[i]",
        "{{ operand }}_grad_view[entry, head, tile * keys + i, d] = {{ operand }}_sum[i, d]",
        GIVEN,
        only="merge_grad_kv_all",
    ),
    _edit(
        "gradient_of_a_ragged_coarsest_node_is_divided_among_a_whole_one",
        "merge_grad_kv",
        "T.if_then_else(tile * keys + i < nodes - 1, span, tail_tokens)",
        "span",
        GIVEN,
        only="merge_grad_kv_all",
    ),
    _edit(
        "missing_entries_select_the_first_node",
        "invert_index",
        "node = idx_view[item, head, chunk * span + t * lanes + member()]",
        "node = T.max(idx_view[item, head, chunk * span + t * lanes + member()], 0)",
        INVERTED,
        times=2,
    ),
    Mutant(
        "rows_of_an_inverted_list_do_not_ascend",
        "invert_index",
        (
            Edit('{{ counts % "c, own(t)" }} = place', '{{ counts % "CHUNKS - 1 - c, own(t)" }} = place'),
            Edit("place = place + line[c]", "place = place + line[CHUNKS - 1 - c]"),
        ),
        INVERTED,
    ),
    _edit(
        "a_list_has_one_part_too_few",
        "invert_index",
        "parts = T.ceildiv(total, part_entries)",
        "parts = T.truncdiv(total, part_entries)",
        MOST_SELECT,
    ),
)
"""Faults of sums over parts, and of inverted lists."""

GRADIENT_MUTANTS = _QUERIES + _KEYS + _SUMS
"""Every fault of the backward pass that the laws must notice."""
