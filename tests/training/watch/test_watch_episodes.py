"""Alarms: one when it begins, one when it is over, none in between."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from training.watch.episodes import Episodes, follow

LOOKS = st.lists(
    st.dictionaries(st.sampled_from(["language", "tokens", "errors", "silent"]), st.sampled_from(["alarm", "clear", "unknown"])),
    max_size=30,
)  # fmt: skip


def end(i: int) -> str:
    return f"2026-11-27T{i // 60:02}:{i % 60:02}:00+00:00"


def told(looks, resolve_windows=2):
    state, names = Episodes(), []
    for i, sights in enumerate(looks):
        state, alarms = follow(state, sights, end(i), resolve_windows)
        names.append([(a.name, a.checks) for a in alarms])
    return state, names


def test_drift_that_lasts_is_told_once_and_resolved_after_two_clear_looks():
    looks = [{"language": s} for s in ("clear", "alarm", "alarm", "alarm", "clear", "clear", "clear")]
    state, names = told(looks)
    assert names == [
        [], [("nightmill.drift", ("language",))], [], [], [], [("nightmill.drift.resolved", ("language",))], [],
    ]  # fmt: skip
    assert state.open == {}


def test_an_alarm_between_clear_looks_keeps_the_episode_open():
    _, names = told([{"tokens": s} for s in ("alarm", "clear", "alarm", "clear", "alarm")])
    assert sum(map(len, names)) == 1


def test_a_look_with_too_few_requests_neither_begins_nor_ends_an_episode():
    state, names = told([{"tokens": s} for s in ("alarm", "unknown", "unknown", "unknown", "clear", "unknown")])
    assert sum(map(len, names)) == 1
    assert state.open["tokens"].looks_clear == 1


def test_checks_that_begin_together_are_one_event_and_errors_another():
    _, names = told([{"tokens": "alarm", "language": "alarm", "errors": "alarm", "silent": "alarm"}])
    assert names[0] == [
        ("nightmill.drift", ("tokens", "language")),
        ("nightmill.traffic.errors", ("errors",)),
        ("nightmill.traffic.silent", ("silent",)),
    ]


def test_the_same_look_twice_tells_nothing_new():
    state, first = follow(Episodes(), {"tokens": "alarm"}, end(5), 1)
    again, second = follow(state, {"tokens": "alarm"}, end(5), 1)
    assert (len(first), second, again) == (1, [], state)
    older, third = follow(state, {"tokens": "clear"}, end(4), 1)
    assert (third, older) == ([], state)


@settings(max_examples=200, deadline=None)
@given(LOOKS, st.integers(1, 3))
def test_beginnings_and_ends_of_a_check_alternate(looks, resolve_windows):
    state, names = told(looks, resolve_windows)
    for check in ("language", "tokens", "errors", "silent"):
        events = [name.endswith(".resolved") for look in names for name, checks in look if check in checks]
        assert events == [i % 2 == 1 for i in range(len(events))]
        assert (check in state.open) == (len(events) % 2 == 1)


def test_state_survives_its_file():
    state, _ = follow(Episodes(), {"tokens": "alarm"}, end(5), 1)
    assert Episodes.model_validate_json(state.model_dump_json()) == state
