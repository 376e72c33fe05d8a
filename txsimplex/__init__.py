"""The protocols of the SimpleX network for Twisted programs.

Everything outside `txsimplex.client`, `txsimplex.tls` and the block transports
is pure: functions and classes on bytes, without reactor, socket, clock or file.
"""
