# SPDX-License-Identifier: Apache-2.0
"""Timing: calls take turns, as often as was asked for and as long as a sample needs."""

import time

from llsa_gen.timing import MOST_REPEATS, Rounds, in_turns, repeats_of, summary


def test_long_calls_take_turns_once_per_round() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        time.sleep(5e-3)
        order.append(name)

    times = in_turns({name: lambda name=name: call(name) for name in "ab"}, Rounds(count=3))  # type: ignore[misc]
    assert order == ["a", "b"] * 4
    assert all(found["samples"] == 3 and found["repeats"] == 1 for found in times.values())


def test_short_calls_run_in_a_row_after_one_that_is_not_timed() -> None:
    said: list[str] = []
    times = in_turns({name: lambda name=name: said.append(name) for name in "ab"}, Rounds())  # type: ignore[misc]
    assert {found["samples"] for found in times.values()} == {Rounds().count}
    assert all(found["lowest"] <= found["p10"] <= found["median"] <= found["p90"] for found in times.values())
    assert said.count("a") == 1 + Rounds().count * (1 + int(times["a"]["repeats"]))


def test_there_are_the_least_samples_where_the_time_is_over() -> None:
    assert in_turns({"a": lambda: None}, Rounds(seconds=0))["a"]["samples"] == 1
    assert in_turns({"a": lambda: None}, Rounds(seconds=0, least=4))["a"]["samples"] == 4


def test_a_sample_holds_more_calls_the_shorter_they_are() -> None:
    assert repeats_of(1.0) == 1 and repeats_of(0.0) == repeats_of(1e-9) == MOST_REPEATS
    assert summary([3.0, 1.0, 2.0])["median"] == 2.0
