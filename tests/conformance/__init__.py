"""The conformance list (docs/spec/smp-conformance.md) as tests, and what has none yet.

The tests run over real TLS against relays that are processes of their own; only items
about encodings (sections A, B, C) call the library. ``python -m tests.conformance`` lists
all items; it and `test_coverage.py` fail when an item that `coverage.DELIVERED` names has
no test.

How to write one::

    @ensureDeferred
    async def test_085_unsigned_send_to_unsecured_queue(relay: Relay) -> None:
        recipient, sender = await relay.connect(), await relay.connect()
        queue = await make_queue(recipient)
        await sender.send(queue.sender_id, b"hello")
        message = await next_message(recipient, queue)
        assert message.body == b"hello"

The name begins with the number of the item, in three digits; a test for several items has
the first one's in its name and ``@conforms(85, 86)``. `relay` is shared between tests and
has the settings of the reference's tests (quota 4, END every 0.5 s, notifications every
0.2 s); for others ask the fixture `relays`: ``relays({"queues.quota": 2})``, started once
for all tests that ask for the same. `relay.connect` gives a client, `relay.raw` one for
what no proper client sends, `relay.blocks` one that has only set up TLS; all of them are
closed after the test. `refused("AUTH")` expects an error, `next_event`, `next_message` and
`no_event` look at what the relay sends by itself. After each test the logs of the relays
are searched for tracebacks.

Where our relay deliberately differs from the reference, the test asserts ours and its
docstring says why.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
"""The checkout."""
