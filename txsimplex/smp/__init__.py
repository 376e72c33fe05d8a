"""SMP: commands, broker messages, errors, transmissions, blocks and handshake.

Everything here is pure (docs/spec/smp-wire.md §5-§12).
"""
