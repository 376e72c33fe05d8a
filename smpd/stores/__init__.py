"""Where queues, messages, notifications and services are kept.

`interface` says what a store does; every other module here is one kind of store.
"""
