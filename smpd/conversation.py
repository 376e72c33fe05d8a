"""The relay's side of one connection: commands are carried out and answered, in order.

What carries the connection is a `Line`: a `smpd.session.Session` of the same process, or one
of an edge process, by `smpd.edge_channel`. Answers wait here until what they depend on is safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from smpd.authorization import check_service
from smpd.delays import MOST_LATE, LateAnswers, has_send
from smpd.peers import Opened, Outlet, Peer, PeerService
from smpd.proxy import ROUTED, Proxy
from smpd.relay import Item, Outcome, Relay
from smpd.stores.interface import RoleMismatch, StoreError, Wanted, What
from txsimplex.smp import errors
from txsimplex.smp.handshake import ServiceClaim
from txsimplex.smp.transmissions import (
    BAD_BLOCK,
    LARGEST_TRANSMISSION,
    Framing,
    Refused,
    Transmission,
)

_FEW_ANSWERS = 4
"""Up to this many answers share a block with the first message (smp-server.md §2.2)."""

_MOST_HELD = 32
"""Blocks that may wait for the store, or their answers, before the client is not read from."""


class Line(Outlet, Protocol):
    """What carries a connection. `active_at`: when it was last used, in seconds of any epoch."""

    active_at: float

    def stop_reading(self) -> None:
        """Reads nothing from the client until `go_on_reading`."""

    def go_on_reading(self) -> None:
        """Reads from the client again."""

    def close(self) -> None:
        """Ends the connection in order."""


Refuse = Callable[[], None]
Items = Sequence[Transmission | Refused]
"""The commands of a block."""


class Conversation:
    """One connection after its handshake: its peer, and its answers in order.

    With a store that other relays share, blocks wait until it admits them, and then their
    answers until their changes are safe. Other stores admit them at once. Where the operator
    wants it, answers to SEND wait until they are due, and others may overtake them.
    """

    __slots__ = (
        "_asked",
        "_closing",
        "_conversations",
        "_ended",
        "_held",
        "_late",
        "_line",
        "_relay",
        "_stopped",
        "peer",
    )

    def __init__(self, conversations: Conversations, line: Line, peer: Peer) -> None:
        self._conversations = conversations
        self._relay = conversations.relay
        self._line = line
        self._held: deque[Outcome] | None = None
        self._late: LateAnswers | None = None
        self._asked = 0
        self._closing = False
        self._ended = False
        self._stopped = False
        self.peer = peer

    def receive(self, content: bytes | None) -> None:
        """Takes the content of a block from the client; None for a block that did not open."""
        if content is None:
            self.process((BAD_BLOCK,))
        else:
            self.process(self.peer.framing.read_commands(content))

    def process(self, items: Items, then: Callable[[Items], None] | None = None) -> None:
        """Carries out the commands of a block, and answers them as soon as that may be.

        `then` is called with them when they are carried out.
        """
        commands = self._relay.open_forwarded(self.peer, items)
        if self._conversations.proxy is not None:
            commands = self._route(self._conversations.proxy, commands)
            if not commands:
                return
        due = self._conversations.due(commands) if self._conversations.answer_time else 0.0
        if self._relay.store.shared:
            wanted = self._relay.lookups(self.peer, commands)
            if self._asked or wanted is not None:
                self._ask(wanted or (), partial(self._admitted, commands, due, items, then))
                return
        self._carry_out(commands, due)
        if then is not None:
            then(items)

    def _route(self, proxy: Proxy, commands: Sequence[Item]) -> Sequence[Item]:
        """Gives the proxy what it answers; what is left."""
        for item in commands:
            if type(item) is Transmission and type(item.command) in ROUTED:
                break
        else:
            return commands
        left: list[Item] = []
        for item in commands:
            if type(item) is not Transmission or type(item.command) not in ROUTED:
                left.append(item)
                continue
            error = check_service(self.peer, item)
            if error is None:
                proxy.take(self, item)
            else:
                left.append(Refused(item.header, error))
        return left

    def reply(self, header: bytes, message: bytes) -> bool:
        """Answers a command that the proxy was given; or not, when that fits into no block."""
        answer = self.peer.framing.answer(header, message)
        if len(answer) > LARGEST_TRANSMISSION:
            return False
        self._line.send((answer,))
        return True

    def _ask(self, wanted: Sequence[Wanted], carry_out: Callable[[], None]) -> None:
        """Has a block carried out when the store admits it, and all later ones after it."""
        self._asked += 1
        if self._asked == _MOST_HELD:
            self._stop_reading()
        self._relay.store.admit(wanted, carry_out, self)

    def _admitted(
        self,
        commands: Sequence[Item],
        due: float,
        items: Items,
        then: Callable[[Items], None] | None,
    ) -> None:
        self._asked -= 1
        try:
            self._carry_out(commands, due)
            if then is not None:
                then(items)
        except Exception:
            self._line.close()
            raise
        finally:
            self._go_on_reading()
            if self._closing:
                self._close_when_answered()
            if self._ended and not self._asked:
                self._leave()

    def _stop_reading(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._line.stop_reading()

    def _go_on_reading(self) -> None:
        """Reads again, if it was stopped and nothing is too much any more."""
        if (
            self._stopped
            and not self._closing
            and self._asked < _MOST_HELD
            and (self._held is None or len(self._held) < _MOST_HELD)
            and (self._late is None or len(self._late) < MOST_LATE)
        ):
            self._stopped = False
            self._line.go_on_reading()

    def _carry_out(self, commands: Sequence[Item], due: float) -> None:
        outcome = self._relay.process(self.peer, commands)
        if due:
            outcome.due = due
        elif outcome.refused:
            self._line.send(outcome.refused)
        if self._held is not None or max(outcome.needs, default=0) > self._relay.store.committed:
            self._hold(outcome)
        else:
            self._answer(outcome)
        forwarding = self.peer.forwarding
        if forwarding is not None and forwarding.is_full:
            # The proxy connects again, and gets another key.
            self._closing = True
            self._stop_reading()
            self._close_when_answered()

    def _close_when_answered(self) -> None:
        """Ends the connection in order, unless something waits for the store: it is called again.

        What would be lost is not only answers: their senders would send once more.
        """
        if not self._asked and self._held is None:
            self.settle()
            self._line.close()

    def resumed(self) -> None:
        """The client has taken what was buffered for it."""
        self._relay.ready(self.peer)

    def end(self) -> None:
        """The connection is gone. What it has asked for before is done nevertheless."""
        self._ended = True
        if not self._asked:
            self._leave()

    def _leave(self) -> None:
        self._end_hold()
        if self._late is not None:
            self._late.forget()
        if self._conversations.proxy is not None:
            self._conversations.proxy.leave(self)
        self._relay.leave(self.peer)
        self._conversations.ended(self)

    def introduce(
        self, claim: ServiceClaim, accepted: Callable[[bytes | None], None], refused: Refuse
    ) -> None:
        """Says whether the service of a connection is taken, in order or as one in another role."""

        def meet() -> None:
            self._asked -= 1
            try:
                service = self._relay.service(claim.role, claim.chain, claim.fingerprint)
            except (RoleMismatch, StoreError):
                refused()
            else:
                self.peer.service = PeerService(
                    service.service_id, claim.role, claim.fingerprint, claim.session_key
                )
                accepted(service.service_id)
            if self._ended and not self._asked:
                self._leave()

        self._asked += 1
        self._relay.store.admit([Wanted(What.CERTIFICATE, claim.fingerprint)], meet, self)

    def _answer(self, outcome: Outcome) -> None:
        """Sends the answers to a block in the order of smp-server.md §2.1 and §2.2."""
        if outcome.due:
            self._answer_late(outcome)
            return
        answers, messages = outcome.answers, outcome.messages
        if messages and len(answers) <= _FEW_ANSWERS:
            self._line.send([*answers, messages[0]])
            messages = messages[1:]
        elif answers:
            self._line.send(answers)
        for message in messages:
            self._line.send((message,))

    # -- answers that wait until they are due

    def _answer_late(self, outcome: Outcome) -> None:
        late = self._late
        if late is None:
            late = self._late = LateAnswers(self._conversations.reactor, self._answer_due)
        late.add(outcome)
        if len(late) == MOST_LATE:
            self._stop_reading()

    def _answer_due(self, outcome: Outcome) -> None:
        outcome.due = 0.0
        if outcome.refused:
            self._line.send(outcome.refused)
        self._answer(outcome)
        self._go_on_reading()

    def settle(self) -> None:
        """Gives the answers now that are not due."""
        if self._late is not None:
            self._late.settle()

    # -- answers that wait for the store

    def _hold(self, outcome: Outcome) -> None:
        """Keeps answers until what they depend on is safe, and all later ones behind them."""
        held = self._held
        if held is None:
            held = self._held = deque()
            self._conversations.holding[self] = None
        held.append(outcome)
        if len(held) == _MOST_HELD:
            self._stop_reading()

    def release(self) -> None:
        """Gives the answers that the store's mark has passed."""
        held = self._held
        if held is None:
            return
        store = self._relay.store
        mark = store.committed
        while held and max(held[0].needs, default=0) <= mark:
            outcome = held.popleft()
            if store.shared:
                self._check(outcome)
            self._answer(outcome)
        self._after_release(held)

    def _check(self, outcome: Outcome) -> None:
        """Puts ``ERR STORE`` in the place of answers whose changes were not made after all."""
        store, peer = self._relay.store, self.peer
        answers = list(outcome.answers)
        for index, need in enumerate(outcome.needs):
            problem = store.spoiled(need)
            if problem is not None:
                message = b"ERR " + errors.store_error(problem).encode(peer.version)
                answers[index] = peer.framing.instead(answers[index], message)
        outcome.answers = answers

    def give_up(self, problem: str) -> None:
        """Gives all answers: ``ERR STORE`` instead of those that depend on what is not safe."""
        held, peer = self._held, self.peer
        if held is None:
            return
        mark = self._relay.store.committed
        message = b"ERR " + errors.store_error(problem).encode(peer.version)
        while held:
            outcome = held.popleft()
            outcome.answers = [
                answer if need <= mark else peer.framing.instead(answer, message)
                for answer, need in zip(outcome.answers, outcome.needs, strict=True)
            ]
            self._answer(outcome)
        self._after_release(held)

    def _after_release(self, held: deque[Outcome]) -> None:
        if not held:
            self._end_hold()
        if self._closing:
            self._close_when_answered()
        self._go_on_reading()

    def _end_hold(self) -> None:
        if self._held is not None:
            self._held = None
            self._conversations.holding.pop(self, None)

    # -- inactivity

    def idle_since(self, before: float) -> bool:
        """Whether it may be closed: it is subscribed to nothing, and silent since `before`."""
        peer = self.peer
        if self._line.active_at >= before:
            return False
        if peer.notifier_ids or peer.service_subscribed or peer.service_notifiers:
            return False
        return all(subscription.getter for subscription in peer.subscriptions.values())

    def close(self) -> None:
        """Ends the connection in order."""
        self._line.close()


class Conversations:
    """All connections of a relay, and the answers that wait for its store.

    `store_time`: seconds that answers wait for a store that fails, before they become errors.
    `proxy` is None when the relay is no proxy. `answer_time`: seconds from a SEND to its answer
    at least.
    """

    log = Logger()

    def __init__(
        self,
        relay: Relay,
        reactor: IReactorTime,
        store_time: float = 5.0,
        proxy: Proxy | None = None,
        answer_time: float = 0.0,
    ) -> None:
        self.relay = relay
        self.proxy = proxy
        self.answer_time = answer_time
        self.reactor = reactor
        self.now = reactor.seconds
        self._call_later = reactor.callLater
        self._store_time = store_time
        self._all: set[Conversation] = set()
        self.holding: dict[Conversation, None] = {}
        self._giving_up: IDelayedCall | None = None
        relay.store.on_commit = self._committed

    def open(
        self, line: Line, opened: Opened, accepted: Callable[[bytes | None], None], refused: Refuse
    ) -> Conversation:
        """The conversation of a connection whose handshake has come so far.

        Calls `accepted`, with the id of its service if it has one, or `refused`: before it
        returns, or after that for a service when the store has to be asked.
        """
        peer = Peer(
            Framing(opened.version, opened.session_id),
            opened.session_key,
            line,
            None,
            secret=opened.secret,
        )
        conversation = Conversation(self, line, peer)
        self._all.add(conversation)
        if opened.service is None:
            accepted(None)
        else:
            conversation.introduce(opened.service, accepted, refused)
        return conversation

    def ended(self, conversation: Conversation) -> None:
        """Forgets a conversation whose connection is gone."""
        self._all.discard(conversation)

    def due(self, items: Sequence[Item]) -> float:
        """When the answers to a block may be given, in seconds of the reactor; 0 for any time."""
        return self.now() + self.answer_time if has_send(items) else 0.0

    def _committed(self) -> None:
        """The store's mark has moved, or the store has a failure now or no more."""
        for conversation in list(self.holding):
            self._each(conversation, conversation.release)
        failing = self.relay.store.failure is not None
        if failing and self._giving_up is None:
            self._giving_up = self._call_later(self._store_time, self._give_up)
        elif not failing and self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        self._giving_up = None
        problem = self.relay.store.failure
        if problem is not None:
            for conversation in list(self.holding):
                self._each(conversation, partial(conversation.give_up, problem))

    def settle(self) -> None:
        """Gives all answers now: what they wait for is made safe, or they become errors."""
        self.relay.store.flush()
        if self._giving_up is not None and self._giving_up.active():
            self._giving_up.cancel()
        self._give_up()
        for conversation in list(self._all):
            self._each(conversation, conversation.settle)

    def _each(self, conversation: Conversation, answer: Callable[[], None]) -> None:
        """Has one of many give its answers: whatever is wrong with it, others get theirs."""
        try:
            answer()
        except Exception:  # noqa: BLE001 - it is said, and the connection ends
            self.log.failure("the answers of a connection cannot be given")
            conversation.close()

    def close_idle(self, ttl: float) -> None:
        """Closes the connections that are subscribed to nothing and silent for `ttl` seconds."""
        before = self.now() - ttl
        for conversation in list(self._all):
            if conversation.idle_since(before):
                conversation.close()
