"""Arbitrary records of stores."""

from __future__ import annotations

from hypothesis import strategies as st

from smpd.queues import Link, Message, Messages, Notifier, Queue, Status
from smpd.stores.interface import Notification, Service
from tests.txsimplex.smp.strategies import any_keys, auth_keys, contents, ids, link_data
from txsimplex.smp.commands import QueueMode, Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice

times = st.one_of(st.integers(0, 2_000_000_000), st.integers(-(1 << 63), (1 << 63) - 1))
secrets = st.binary(min_size=32, max_size=32)
links = st.builds(Link, ids, link_data)
notifiers = st.builds(Notifier, ids, auth_keys, secrets, st.none() | ids)
messages = st.builds(Message, ids, times, st.booleans(), st.none() | contents)
notifications = st.builds(Notification, times, st.binary(min_size=24, max_size=24), contents)
services = st.builds(
    Service, ids, st.sampled_from(Role), st.lists(contents, max_size=4).map(tuple), secrets, times
)
blocked = st.builds(
    BlockingInformation,
    st.sampled_from(BlockingReason),
    st.none() | st.builds(Notice, st.none() | st.integers()),
)
queues = st.builds(
    Queue,
    recipient_id=ids,
    recipient_keys=st.lists(auth_keys, min_size=1, max_size=4),
    secret=secrets,
    sender_id=ids,
    mode=st.none() | st.sampled_from(QueueMode),
    sender_key=st.none() | any_keys,
    link=st.none() | links,
    notifier=st.none() | notifiers,
    status=st.sampled_from([Status.ACTIVE, Status.OFF, Status.BLOCKED]),
    blocked=st.none() | blocked,
    used_on=times,
    service_id=st.none() | ids,
    messages=st.builds(Messages, st.just([]), st.booleans()),
)
