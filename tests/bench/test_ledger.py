"""The bookkeeping of the crash benchmark finds what is lost, repeated or reordered, no more."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from bench.ledger import Ledger, number_of, numbered_body

QUEUE = "queue"


def ids(number: int) -> bytes:
    return b"id%d" % number


class Bench:
    """A ledger with one queue, and the things that happen to it."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.ledger.created(QUEUE)

    def send(self, count: int = 1, *, answered: bool = True) -> None:
        for _ in range(count):
            number = self.ledger.send_asked(QUEUE)
            if answered:
                self.ledger.send_answered(QUEUE, number)

    def see(self, *numbers: int) -> None:
        for number in numbers:
            self.ledger.seen(QUEUE, number, ids(number))

    def ack(self, number: int, *, answered: bool = True, empty: bool = False) -> None:
        self.ledger.ack_asked(QUEUE, number, ids(number))
        if answered:
            self.ledger.ack_answered(QUEUE, number, ids(number), empty=empty)

    def take(self, *numbers: int) -> None:
        for number in numbers:
            self.see(number)
            self.ack(number)

    def crash(self) -> None:
        self.ledger.crashed()

    def counts(self) -> dict[str, int]:
        """What is not as it must be."""
        names = (
            "lost",
            "duplicated_after_ack",
            "out_of_order",
            "altered",
            "wrong_answers",
            "queues_lost",
            "queues_returned",
        )
        report = self.ledger.as_json()
        found = {name: report[name] for name in names if report[name]}
        assert self.ledger.faulty == bool(found)
        assert bool(report["faults"]) == bool(found)
        return found  # type: ignore[return-value]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- what is right


def test_messages_in_order(bench: Bench) -> None:
    bench.send(3)
    bench.take(1, 2)
    bench.see(3)
    bench.ack(3, empty=True)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}
    assert (bench.ledger.accepted, bench.ledger.acknowledged) == (3, 3)


def test_a_message_that_waits_comes_after_the_crash(bench: Bench) -> None:
    bench.send(2)
    bench.crash()
    bench.take(1, 2)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_a_message_comes_again_when_its_ack_was_not_answered(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, answered=False)
    bench.crash()
    bench.take(1, 2)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}
    assert bench.ledger.redelivered == 1


def test_an_ack_without_answer_may_have_taken_effect(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, answered=False)
    bench.crash()
    bench.take(2)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


@pytest.mark.parametrize("comes", [True, False])
def test_a_message_whose_send_was_not_answered(bench: Bench, comes: bool) -> None:
    bench.send(answered=False)
    bench.crash()
    if comes:
        bench.take(1)
    bench.send()
    bench.take(2)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_two_messages_again_of_which_the_second_was_delivered_before_the_first_acks_answer(
    bench: Bench,
) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, answered=False)
    bench.see(2)
    bench.crash()
    bench.take(1, 2)
    assert bench.counts() == {}


def test_the_answer_to_send_after_the_message(bench: Bench) -> None:
    number = bench.ledger.send_asked(QUEUE)
    bench.see(number)
    bench.ack(number, empty=True)
    bench.ledger.send_answered(QUEUE, number)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}
    assert bench.ledger.accepted == 1


def test_a_message_taken_while_an_ack_is_under_way(bench: Bench) -> None:
    bench.send()
    bench.see(1)
    bench.ledger.ack_asked(QUEUE, 1, ids(1))
    bench.send()
    bench.ledger.ack_answered(QUEUE, 1, ids(1), empty=True)
    bench.see(2)
    bench.ack(2)
    assert bench.counts() == {}


# -- what is lost


def test_a_message_that_a_later_one_overtook_is_lost(bench: Bench) -> None:
    bench.send(2)
    bench.crash()
    bench.take(2)
    assert bench.counts() == {"lost": 1}


def test_messages_that_are_not_there_after_a_crash_are_lost(bench: Bench) -> None:
    bench.send(3)
    bench.take(1)
    bench.crash()
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {"lost": 2}


def test_a_message_that_was_seen_but_not_acknowledged_is_lost_too(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.crash()
    bench.take(2)
    assert bench.counts() == {"lost": 1}


def test_lost_when_the_queue_is_empty_after_the_last_ack(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, empty=True)
    assert bench.counts() == {"lost": 1}


def test_a_message_overtaken_before_its_ok_is_lost_with_it(bench: Bench) -> None:
    first = bench.ledger.send_asked(QUEUE)
    bench.send()
    bench.see(2)
    assert bench.counts() == {}
    bench.ledger.send_answered(QUEUE, first)
    assert bench.counts() == {"lost": 1}


def test_messages_are_lost_with_their_queue(bench: Bench) -> None:
    bench.send(3)
    bench.take(1)
    bench.crash()
    assert not bench.ledger.found(QUEUE, there=False)
    assert bench.counts() == {"lost": 2, "queues_lost": 1}


# -- what comes again, or in another order


def test_a_message_after_its_ack_was_answered(bench: Bench) -> None:
    bench.send(2)
    bench.take(1)
    bench.crash()
    bench.take(1, 2)
    assert bench.counts() == {"duplicated_after_ack": 1}


def test_messages_the_other_way_round(bench: Bench) -> None:
    bench.send(2)
    bench.crash()
    bench.see(2)
    bench.see(1)
    assert bench.counts() == {"out_of_order": 1}


def test_a_message_without_ok_that_comes_after_a_later_one(bench: Bench) -> None:
    bench.send(answered=False)
    bench.crash()
    bench.send()
    bench.take(2)
    bench.crash()
    bench.see(1)
    assert bench.counts() == {"out_of_order": 1}


def test_a_removal_that_a_crash_undoes_after_it_was_seen_to_have_outlived_one(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, answered=False)
    bench.crash()
    bench.see(2)
    bench.crash()
    bench.see(1)
    assert bench.counts() == {"out_of_order": 1}


def test_an_earlier_message_in_the_same_run(bench: Bench) -> None:
    bench.send(2)
    bench.see(1)
    bench.ack(1, answered=False)
    bench.see(2)
    bench.see(1)
    assert bench.counts() == {"out_of_order": 1}


def test_a_message_twice_to_one_subscription(bench: Bench) -> None:
    bench.send()
    bench.see(1, 1)
    assert bench.counts() == {"wrong_answers": 1}


# -- contents


def test_what_was_not_sent(bench: Bench) -> None:
    bench.send()
    bench.ledger.seen(QUEUE, None, b"id")
    bench.ledger.seen(QUEUE, 2, b"id")
    assert bench.counts() == {"altered": 2}


def test_a_message_with_another_id(bench: Bench) -> None:
    bench.send()
    bench.see(1)
    bench.crash()
    bench.ledger.seen(QUEUE, 1, b"another")
    assert bench.counts() == {"altered": 1}


@given(st.binary(min_size=1, max_size=24), st.integers(1, 2**63))
def test_a_body_is_known_by_queue_and_number(seed: bytes, number: int) -> None:
    body = numbered_body(seed, number)
    assert 8 <= len(body) <= 16048
    assert number_of(seed, body) == number
    assert number_of(seed, body + b"x") is None
    if len(body) > 8:
        changed = body[:-1] + bytes([body[-1] ^ 1])
        assert number_of(seed, changed) is None
        assert number_of(seed + b"x", body) is None


# -- full queues


def refuse(bench: Bench) -> None:
    bench.ledger.send_refused(QUEUE, bench.ledger.send_asked(QUEUE))


def drain(bench: Bench) -> None:
    bench.ledger.marker_seen(QUEUE, b"marker")
    bench.ledger.ack_asked(QUEUE, None, b"marker")
    bench.ledger.ack_answered(QUEUE, None, b"marker", empty=True)


def test_a_full_queue_over_a_crash(bench: Bench) -> None:
    bench.send(2)
    refuse(bench)
    bench.crash()
    refuse(bench)
    bench.take(1, 2)
    drain(bench)
    bench.send()
    bench.take(5)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_a_marker_of_a_send_without_answer(bench: Bench) -> None:
    bench.send()
    bench.send(answered=False)
    bench.crash()
    bench.take(1)
    drain(bench)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_the_refusal_is_heard_after_the_marker(bench: Bench) -> None:
    number = bench.ledger.send_asked(QUEUE)
    drain(bench)
    bench.ledger.send_refused(QUEUE, number)
    bench.send()
    bench.take(2)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_a_marker_again_when_its_ack_was_not_answered(bench: Bench) -> None:
    refuse(bench)
    bench.ledger.marker_seen(QUEUE, b"marker")
    bench.ledger.ack_asked(QUEUE, None, b"marker")
    bench.crash()
    drain(bench)
    assert bench.counts() == {}
    bench.crash()
    bench.ledger.marker_seen(QUEUE, b"marker")
    assert bench.counts() == {"duplicated_after_ack": 1}


def test_a_refusal_while_the_marker_is_being_acknowledged(bench: Bench) -> None:
    refuse(bench)
    bench.ledger.marker_seen(QUEUE, b"marker")
    bench.ledger.ack_asked(QUEUE, None, b"marker")
    number = bench.ledger.send_asked(QUEUE)
    bench.ledger.ack_answered(QUEUE, None, b"marker", empty=True)
    bench.ledger.send_refused(QUEUE, number)
    bench.send()
    bench.take(3)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_a_marker_that_is_not_kept(bench: Bench) -> None:
    bench.send()
    refuse(bench)
    bench.crash()
    bench.take(1)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {"wrong_answers": 1}


def test_a_marker_without_reason(bench: Bench) -> None:
    bench.ledger.marker_seen(QUEUE, b"marker")
    assert bench.counts() == {"wrong_answers": 1}


def test_a_full_queue_that_forgets_it(bench: Bench) -> None:
    bench.send()
    refuse(bench)
    bench.crash()
    bench.send()
    assert bench.counts() == {"wrong_answers": 1}


def test_a_message_lost_before_a_marker(bench: Bench) -> None:
    bench.send()
    refuse(bench)
    bench.crash()
    drain(bench)
    assert bench.counts() == {"lost": 1}


def test_a_refused_message_that_comes(bench: Bench) -> None:
    refuse(bench)
    bench.see(1)
    assert bench.counts() == {"altered": 1}


# -- queues


def test_deleted_queues(bench: Bench) -> None:
    bench.send()
    bench.ledger.delete_asked(QUEUE)
    bench.ledger.send_failed(QUEUE, bench.ledger.send_asked(QUEUE), "AUTH")
    bench.ledger.ack_failed(QUEUE, "AUTH")
    bench.ledger.delete_answered(QUEUE)
    bench.crash()
    assert not bench.ledger.found(QUEUE, there=False)
    assert bench.counts() == {}
    assert bench.ledger.queues_deleted == 1
    assert not bench.ledger.found(QUEUE, there=True)
    assert bench.counts() == {"queues_returned": 1}


@pytest.mark.parametrize("there", [True, False])
def test_a_queue_whose_deletion_was_not_answered(bench: Bench, there: bool) -> None:
    bench.send()
    bench.ledger.delete_asked(QUEUE)
    bench.crash()
    assert bench.ledger.found(QUEUE, there=there) == there
    if there:
        bench.take(1)
        bench.ledger.empty(QUEUE)
    assert bench.counts() == {}


def test_a_queue_that_is_there_again_has_its_messages(bench: Bench) -> None:
    bench.send()
    bench.ledger.delete_asked(QUEUE)
    bench.crash()
    assert bench.ledger.found(QUEUE, there=True)
    bench.ledger.empty(QUEUE)
    assert bench.counts() == {"lost": 1}


def test_refusals_without_reason(bench: Bench) -> None:
    bench.ledger.send_failed(QUEUE, bench.ledger.send_asked(QUEUE), "AUTH")
    bench.ledger.ack_failed(QUEUE, "NO_MSG")
    assert bench.counts() == {"wrong_answers": 2}


# -- subscriptions of several relays


def test_a_new_subscription_begins_a_run_of_its_queue() -> None:
    bench = Bench()
    bench.send(2)
    bench.see(1)
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.see(1)
    assert bench.counts() == {}
    bench.see(1)
    assert bench.counts() == {"wrong_answers": 1}
    assert "SUB at relay 1" in bench.ledger.histories[0]


def test_what_was_accepted_before_a_subscription_comes_with_it() -> None:
    bench = Bench()
    bench.send()
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.send()
    assert bench.ledger.owes(QUEUE)
    bench.ledger.nothing_came(QUEUE)
    assert bench.counts() == {"lost": 1}
    bench.take(2)
    assert not bench.ledger.owes(QUEUE)


def test_what_is_sent_meanwhile_may_come_later() -> None:
    bench = Bench()
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.send()
    bench.ledger.nothing_came(QUEUE)
    bench.take(1)
    assert bench.counts() == {}


def test_a_marker_has_to_come_with_a_subscription() -> None:
    bench = Bench()
    bench.send()
    number = bench.ledger.send_asked(QUEUE)
    bench.ledger.send_refused(QUEUE, number)
    bench.take(1)
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.ledger.nothing_came(QUEUE)
    assert bench.counts() == {"wrong_answers": 1}


def test_an_ack_that_was_under_way_when_the_queue_went_elsewhere() -> None:
    bench = Bench()
    bench.send(2)
    bench.see(1)
    bench.ledger.ack_asked(QUEUE, 1, ids(1))
    run = bench.ledger.run_of(QUEUE)
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.ledger.ack_answered_elsewhere(QUEUE, 1, run)
    bench.take(2)
    assert bench.counts() == {}
    bench.see(1)
    assert bench.counts() == {"duplicated_after_ack": 1}


def test_such_an_ack_is_refused_when_the_message_has_come_elsewhere() -> None:
    bench = Bench()
    bench.send()
    bench.see(1)
    bench.ledger.ack_asked(QUEUE, 1, ids(1))
    run = bench.ledger.run_of(QUEUE)
    bench.ledger.subscribing(QUEUE, "relay 1")
    bench.see(1)
    bench.ledger.ack_answered_elsewhere(QUEUE, 1, run)
    assert bench.counts() == {"wrong_answers": 1}


def test_an_error_of_the_store_leaves_a_message_in_doubt() -> None:
    for comes in (True, False):
        bench = Bench()
        number = bench.ledger.send_asked(QUEUE)
        bench.ledger.send_in_doubt(QUEUE, number, "STORE")
        bench.send()
        bench.ledger.subscribing(QUEUE, "relay 1")
        bench.take(*((1, 2) if comes else (2,)))
        assert bench.counts() == {}


def test_kills_are_counted_though_nothing_of_a_queue_has_ended() -> None:
    bench = Bench()
    bench.send()
    bench.see(1)
    bench.ledger.killed()
    bench.see(1)
    assert bench.ledger.run == 1
    assert bench.counts() == {"wrong_answers": 1}
