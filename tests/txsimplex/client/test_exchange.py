"""Which answer belongs to which command (smp-wire.md §9)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from txsimplex.client.errors import (
    DisconnectedError,
    RelayError,
    TimedOutError,
    TooLargeError,
    UnexpectedAnswerError,
)
from txsimplex.client.exchange import Answer, Pending, Sent
from txsimplex.smp import errors
from txsimplex.smp.messages import Err, Ok, Pong
from txsimplex.smp.transmissions import Received


class Results(list[list[Answer]]):
    """What `Pending` gave, one list for each exchange."""


@given(st.permutations(range(20)))
def test_answers_come_in_the_order_of_the_commands(order: list[int]) -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(bytes([n + 1]), b"q%d" % n) for n in range(20)], results.append)
    errs = {n: errors.Error(("STORE",), str(n)) for n in range(20)}
    for n in order:
        assert not results
        assert pending.settle(Received(bytes([n + 1]), b"q%d" % n, Err(errs[n])))
    (answers,) = results
    assert [a.error for a in answers if isinstance(a, RelayError)] == list(errs.values())
    assert len(pending) == 0


def test_an_answer_to_nothing_is_not_taken() -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(b"a", b"")], results.append)
    assert not pending.settle(Received(b"b", b"", Pong()))
    assert pending.settle(Received(b"a", b"", Pong()))
    assert not pending.settle(Received(b"a", b"", Pong()))
    assert results == [[Pong()]]


def test_nothing_sent_is_finished_at_once() -> None:
    results = Results()
    Pending().add([], results.append)
    assert results == [[]]


def test_a_command_too_large_stands_for_itself() -> None:
    pending, results = Pending(), Results()
    too_large = TooLargeError("")
    pending.add([too_large, Sent(b"a", b"q")], results.append)
    assert not results
    pending.settle(Received(b"a", b"q", Ok()))
    assert results == [[too_large, Ok()]]


def test_only_commands_too_large() -> None:
    results = Results()
    too_large = TooLargeError("")
    Pending().add([too_large], results.append)
    assert results == [[too_large]]


@pytest.mark.parametrize(
    "again", [[b""], [b"a", b"b"], [b"c", b"c"]], ids=["empty", "waits", "twice"]
)
def test_correlation_ids_that_cannot_be_told_apart(again: list[bytes]) -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(b"a", b"")], results.append)
    with pytest.raises(ValueError, match="correlation id"):
        pending.add([Sent(corr_id, b"") for corr_id in again], results.append)
    assert len(pending) == 1


def test_answers_about_another_entity() -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(b"a", b"q"), Sent(b"b", b"q")], results.append)
    pending.settle(Received(b"a", b"r", Ok()))
    pending.settle(Received(b"b", b"", Err(errors.BLOCK)))
    ((first, second),) = results
    assert isinstance(first, UnexpectedAnswerError)
    assert isinstance(second, RelayError)
    assert second.error == errors.BLOCK


def test_an_answer_that_cannot_be_read() -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(b"a", b"q")], results.append)
    pending.settle(Received(b"a", b"q", errors.SYNTAX))
    ((answer,),) = results
    assert isinstance(answer, UnexpectedAnswerError)


def test_failed_and_forgotten() -> None:
    pending, results = Pending(), Results()
    pending.add([Sent(b"a", b""), Sent(b"b", b"")], results.append)
    pending.add([Sent(b"c", b"")], results.append)
    pending.forget([b"c"])
    pending.fail(b"a", TimedOutError(""))
    pending.fail(b"a", TimedOutError("again"))
    assert not results
    pending.fail_all(DisconnectedError(""))
    ((first, second),) = results
    assert isinstance(first, TimedOutError)
    assert isinstance(second, DisconnectedError)
    assert len(pending) == 0
