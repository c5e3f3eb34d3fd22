"""Interleaved timing: turns, rounds, ratios within rounds, and what is left out."""

import time

import pytest
import torch

from benchmarks.timing import Contestant, Measurement, Settings, measure

CPU = torch.device("cpu")


def test_contestants_take_turns_and_have_one_sample_a_round() -> None:
    turns: list[str] = []

    def contestant(name: str) -> Contestant:
        return Contestant(lambda: (turns.append(name), time.sleep(0.01)))

    settings = Settings(rounds=4, min_rounds=4, sample_seconds=0.005)
    found = measure({"a": contestant("a"), "b": contestant("b")}, settings, CPU)
    assert found.loops == {"a": 1, "b": 1}
    assert [len(values) for values in found.seconds.values()] == [4, 4]
    # Two calls each to calibrate; then turns, the first of which brings its operands back into the caches.
    assert turns == ["a", "a", "b", "b", "a"] + ["a", "b"] * 4


def test_short_calls_are_repeated_until_they_fill_a_sample() -> None:
    found = measure({"a": Contestant(lambda: time.sleep(1e-3))}, Settings(rounds=2, min_rounds=2), CPU)
    assert 2 <= found.loops["a"] <= 20  # 20 fill it; fewer where a busy machine oversleeps
    assert min(found.seconds["a"]) >= 1e-3


def test_ratios_are_taken_within_rounds() -> None:
    # The machine becomes ten times slower half-way: the ratio does not see it.
    found = Measurement({"slow": [2.0, 2.0, 20.0, 20.0], "fast": [1.0, 1.0, 10.0, 10.0]})
    ratio = found.ratio("slow", "fast")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)
    assert found.ratio("slow", "absent") is None
    assert found.time("absent") is None


def test_what_takes_too_long_is_left_out_after_its_first_call() -> None:
    settings = Settings(rounds=3, min_rounds=3, sample_seconds=0.001, call_seconds=0.02)
    found = measure({"slow": Contestant(lambda: time.sleep(0.1)), "fast": Contestant(lambda: None)}, settings, CPU)
    assert found.too_slow["slow"] > 0.05
    assert list(found.seconds) == ["fast"]


def test_threads_and_grad_mode_are_each_contestants_own() -> None:
    before = torch.get_num_threads()
    seen: dict[str, set[tuple[int, bool]]] = {"a": set(), "b": set()}

    def look(name: str) -> None:
        seen[name].add((torch.get_num_threads(), torch.is_grad_enabled()))

    settings = Settings(rounds=3, min_rounds=3, sample_seconds=1e-4)
    contestants = {"a": Contestant(lambda: look("a"), threads=1), "b": Contestant(lambda: look("b"), 2, grad=True)}
    measure(contestants, settings, CPU)
    assert seen == {"a": {(1, False)}, "b": {(2, True)}}
    assert torch.get_num_threads() == before


def test_a_gpu_is_timed_by_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("end")

        def elapsed_time(self, end: "Event") -> float:
            return 30.0 * log.count("call")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.clear())
    found = measure(
        {"K": Contestant(lambda: log.append("call"))}, Settings(rounds=2, min_rounds=2), torch.device("cuda")
    )
    assert found.seconds == {"K": [0.03, 0.03]}
    assert log == ["record", "call", "record", "end"]
