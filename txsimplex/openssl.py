"""OpenSSL beyond pyOpenSSL's public interface. Every private call of the project is in this module.

pyOpenSSL carries each block through several objects and exceptions that cost as much as the block's
encryption. Its cffi functions do the same in a third of the time. They are private, so each use
has a public substitute, and which of the two it is, is settled once, when this module is imported.

Two classes of connection come out of it: :data:`SocketTLS`, TLS on a real socket, and
:data:`MemoryTLS`, TLS between two memory buffers.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module
from socket import socket as Socket
from typing import Any, Final

from OpenSSL import SSL, crypto

from txsimplex.blocks_transport import BLOCK_SIZE

MODE_RELEASE_BUFFERS: Final = 0x10
MODE_ACCEPT_MOVING_WRITE_BUFFER: Final = 0x2
OP_LEGACY_SERVER_CONNECT: Final = 0x4

_CTRL_SET_GROUPS_LIST: Final = 92
DRAIN_SIZE: Final = 4 * (5 + BLOCK_SIZE + 256)

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)


class TLSEndedError(Exception):
    """The TLS connection cannot go on.

    :ivar clean: the peer said goodbye; otherwise it broke the protocol or the connection.
    """

    def __init__(self, clean: bool) -> None:
        super().__init__("TLS was closed" if clean else "TLS failed")
        self.clean = clean


# ---------------------------------------------------------------------------------------------
# Contexts


def _shared_library() -> ctypes.CDLL | None:
    """The OpenSSL that pyOpenSSL is linked to, if it is a library of its own (as on Debian)."""
    try:
        bindings = import_module("cryptography.hazmat.bindings._openssl")
        library = ctypes.CDLL(bindings.__file__)
        library.SSL_CTX_ctrl.restype = ctypes.c_long
        library.SSL_CTX_ctrl.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_char_p,
        ]
        library.SSL_CTX_set_num_tickets.restype = ctypes.c_int
        library.SSL_CTX_set_num_tickets.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    except (ImportError, AttributeError, OSError):
        return None
    return library


_library = _shared_library()


def _native(context: SSL.Context) -> Any:
    holder: Any = context
    return holder._context


def _address(context: SSL.Context) -> int:
    return int(_ffi.cast("uintptr_t", _native(context)))


def _private_call(name: str, context: SSL.Context, value: bytes) -> bool:
    function = getattr(_lib, name, None)
    if function is None:
        return False
    done: bool = function(_native(context), value) == 1
    if not done:
        _lib.ERR_clear_error()
    return done


def set_ciphersuites(context: SSL.Context, suites: bytes) -> bool:
    """Set the cipher suites of TLS 1.3. False: it cannot be done here."""
    public = getattr(context, "set_tls13_ciphersuites", None)
    if public is None:
        return _private_call("SSL_CTX_set_ciphersuites", context, suites)
    public(suites)
    return True


def set_groups(context: SSL.Context, groups: bytes) -> bool:
    """Set the groups for key agreement, as in ``b"X25519:X448"``. False: it cannot be done here."""
    if _library is not None:
        return bool(_library.SSL_CTX_ctrl(_address(context), _CTRL_SET_GROUPS_LIST, 0, groups) == 1)
    return _private_call("SSL_CTX_set1_curves_list", context, groups)


def set_signature_algorithms(context: SSL.Context, algorithms: bytes) -> bool:
    """Set the signature algorithms, ``b"ed25519:ed448"``. False: it cannot be done here."""
    return _private_call("SSL_CTX_set1_sigalgs_list", context, algorithms)


def set_no_tickets(context: SSL.Context) -> bool:
    """Issue no session tickets with TLS 1.3. False: it cannot be done here."""
    if _library is None:
        return False
    return bool(_library.SSL_CTX_set_num_tickets(_address(context), 0) == 1)


# ---------------------------------------------------------------------------------------------
# Connections


def _peer_chain(connection: SSL.Connection, server: bool) -> tuple[bytes, ...]:
    """The peer's certificates, DER, leaf first, as it sent them."""
    chain = list(connection.get_peer_cert_chain() or ())
    if server:
        # OpenSSL leaves the leaf out of the list that it keeps of a client's certificates.
        leaf = connection.get_peer_certificate()
        chain[:0] = [] if leaf is None else [leaf]
    return tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, each) for each in chain)


class _Handshake:
    """The part of a TLS connection that is the same everywhere: its handshake and its results.

    pyOpenSSL's Connection is kept until the handshake is over and :meth:`settle` was called.
    """

    __slots__ = ("_connection", "_server")

    def __init__(self, context: SSL.Context, socket: Socket | None, server: bool) -> None:
        self._connection: SSL.Connection = SSL.Connection(context, socket)
        self._server = server
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()

    def handshake(self) -> bool:
        """Go on with the handshake as far as it goes. True: it is done.

        :raises SSL.WantWriteError: it waits for the socket to take more.
        :raises TLSEndedError: it failed; the alert that says so has been written if possible.
        """
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.WantWriteError:
            raise
        except SSL.Error as error:
            raise TLSEndedError(isinstance(error, SSL.ZeroReturnError)) from None
        return True

    @property
    def session_id(self) -> bytes:
        """verify_data of the client's Finished (smp-wire.md §4.3); b"" if there is none."""
        connection = self._connection
        finished = connection.get_peer_finished() if self._server else connection.get_finished()
        return finished or b""

    @property
    def alpn(self) -> bytes | None:
        """The protocol agreed on, if any."""
        return self._connection.get_alpn_proto_negotiated() or None

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """What the peer presented: DER, leaf first."""
        return _peer_chain(self._connection, self._server)

    def settle(self) -> None:
        """The handshake is over and its results have been read: give up what only it needed."""


class PublicSocketTLS(_Handshake):
    """TLS on a non-blocking socket by pyOpenSSL's public interface."""

    __slots__ = ()

    def __init__(self, context: SSL.Context, socket: Socket, server: bool) -> None:
        super().__init__(context, socket, server)

    def read(self) -> bytes | None:
        """The contents of the next record; None if there is nothing to read now.

        :raises TLSEndedError: there will be nothing more.
        """
        try:
            return self._connection.recv(BLOCK_SIZE)
        except SSL.WantReadError:
            return None
        except SSL.Error as error:
            raise TLSEndedError(isinstance(error, SSL.ZeroReturnError)) from None

    def write(self, block: bytes | bytearray | memoryview) -> bool:
        """Write a whole block. False: it must be offered again, the same, when the socket is ready.

        :raises TLSEndedError: nothing more can be written.
        """
        try:
            return self._connection.send(bytes(block)) == BLOCK_SIZE
        except SSL.WantWriteError:
            return False
        except SSL.Error:
            raise TLSEndedError(False) from None

    def close_notify(self) -> bool:
        """Say goodbye. False: try again when the socket is ready."""
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            return False
        except SSL.Error:
            pass
        return True


class DirectSocketTLS(_Handshake):
    """TLS on a non-blocking socket by pyOpenSSL's own cffi functions.

    One call of :meth:`read` takes at most one record from the socket, whatever is in it, so that a
    flood of records without data cannot hold the reactor.
    """

    __slots__ = ("_context", "_ssl")

    def __init__(self, context: SSL.Context, socket: Socket, server: bool) -> None:
        super().__init__(context, socket, server)
        native: Any = self._connection
        self._ssl = native._ssl
        _lib.SSL_clear_mode(self._ssl, _lib.SSL_MODE_AUTO_RETRY)

    def settle(self) -> None:
        """See :meth:`_Handshake.settle`."""
        # It owns the callbacks that OpenSSL has the addresses of.
        self._context = self._connection.get_context()
        del self._connection

    def read(self) -> bytes | None:
        """See :meth:`PublicSocketTLS.read`."""
        count = _lib.SSL_read(self._ssl, _block, BLOCK_SIZE)
        if count > 0:
            return _block_view[:count]  # type: ignore[no-any-return]
        return _after_failed_read(self._ssl, count)

    def write(self, block: bytes | bytearray | memoryview) -> bool:
        """See :meth:`PublicSocketTLS.write`."""
        source = block if type(block) is bytes else _ffi.from_buffer(block)
        count = _lib.SSL_write(self._ssl, source, BLOCK_SIZE)
        return count == BLOCK_SIZE or _after_failed_write(self._ssl, count, source)

    def close_notify(self) -> bool:
        """See :meth:`PublicSocketTLS.close_notify`."""
        _lib.ERR_clear_error()
        count = _lib.SSL_shutdown(self._ssl)
        written: bool = count >= 0 or _lib.SSL_get_error(self._ssl, count) != _ERROR_WANT_WRITE
        _lib.ERR_clear_error()
        return written


class PublicMemoryTLS(_Handshake):
    """TLS between two memory buffers by pyOpenSSL's public interface."""

    __slots__ = ()

    def __init__(self, context: SSL.Context, server: bool) -> None:
        super().__init__(context, None, server)

    def feed(self, data: bytes) -> None:
        """Take in bytes that came from the peer."""
        self._connection.bio_write(data)

    def drain(self) -> memoryview:
        """Bytes to be sent to the peer, up to four records; empty if there are none.

        They are valid until the next call of this method on any connection.
        """
        try:
            return memoryview(self._connection.bio_read(DRAIN_SIZE))
        except SSL.WantReadError:
            return memoryview(b"")

    def read(self) -> bytes | None:
        """The contents of the next record with data; None if no such record has come in whole.

        :raises TLSEndedError: there will be nothing more.
        """
        try:
            return self._connection.recv(BLOCK_SIZE)
        except SSL.WantReadError:
            return None
        except SSL.Error as error:
            raise TLSEndedError(isinstance(error, SSL.ZeroReturnError)) from None

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Encrypt a whole block, to be drained.

        :raises TLSEndedError: nothing more can be written.
        """
        try:
            self._connection.send(bytes(block))
        except SSL.Error:
            raise TLSEndedError(False) from None

    def close_notify(self) -> None:
        """Say goodbye, to be drained."""
        with suppress(SSL.Error):
            self._connection.shutdown()


class DirectMemoryTLS(_Handshake):
    """TLS between two memory buffers by pyOpenSSL's own cffi functions."""

    __slots__ = ("_context", "_incoming", "_outgoing", "_ssl")

    def __init__(self, context: SSL.Context, server: bool) -> None:
        super().__init__(context, None, server)
        native: Any = self._connection
        self._ssl = native._ssl
        self._incoming = native._into_ssl
        self._outgoing = native._from_ssl

    def settle(self) -> None:
        """See :meth:`_Handshake.settle`."""
        # It owns the callbacks that OpenSSL has the addresses of.
        self._context = self._connection.get_context()
        del self._connection

    def feed(self, data: bytes) -> None:
        """See :meth:`PublicMemoryTLS.feed`."""
        _lib.BIO_write(self._incoming, data, len(data))

    def drain(self) -> memoryview:
        """See :meth:`PublicMemoryTLS.drain`."""
        count = _lib.BIO_read(self._outgoing, _records, DRAIN_SIZE)
        return _records_view[: count if count > 0 else 0]

    def read(self) -> bytes | None:
        """See :meth:`PublicMemoryTLS.read`."""
        count = _lib.SSL_read(self._ssl, _block, BLOCK_SIZE)
        if count > 0:
            return _block_view[:count]  # type: ignore[no-any-return]
        return _after_failed_read(self._ssl, count)

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """See :meth:`PublicMemoryTLS.write`."""
        source = block if type(block) is bytes else _ffi.from_buffer(block)
        count = _lib.SSL_write(self._ssl, source, BLOCK_SIZE)
        if count != BLOCK_SIZE:
            _after_failed_write(self._ssl, count, source)

    def close_notify(self) -> None:
        """See :meth:`PublicMemoryTLS.close_notify`."""
        _lib.SSL_shutdown(self._ssl)
        _lib.ERR_clear_error()


def _after_failed_read(ssl: Any, count: int) -> bytes | None:
    """Tell why nothing was read.

    OpenSSL looks for the reason in the thread's queue of errors, where another user of the
    library may have left one. So an error that is reported is taken for true only if it happens
    again with the queue empty.
    """
    reason = _lib.SSL_get_error(ssl, count)
    if reason == _ERROR_SSL:
        _lib.ERR_clear_error()
        count = _lib.SSL_read(ssl, _block, BLOCK_SIZE)
        if count > 0:
            return _block_view[:count]  # type: ignore[no-any-return]
        reason = _lib.SSL_get_error(ssl, count)
    if reason == _ERROR_WANT_READ:
        return None
    _lib.ERR_clear_error()
    raise TLSEndedError(reason == _ERROR_ZERO_RETURN)


def _after_failed_write(ssl: Any, count: int, source: Any) -> bool:
    """Tell why a block was not written: False if it just has to wait. See above."""
    reason = _lib.SSL_get_error(ssl, count)
    if reason == _ERROR_SSL:
        _lib.ERR_clear_error()
        count = _lib.SSL_write(ssl, source, BLOCK_SIZE)
        if count == BLOCK_SIZE:
            return True
        reason = _lib.SSL_get_error(ssl, count)
    if reason == _ERROR_WANT_WRITE:
        return False
    _lib.ERR_clear_error()
    raise TLSEndedError(False)


def _has_direct_calls() -> bool:
    needed = (
        "BIO_read BIO_write ERR_clear_error SSL_clear_mode SSL_get_error SSL_read SSL_shutdown "
        "SSL_write SSL_ERROR_SSL SSL_ERROR_WANT_READ SSL_ERROR_WANT_WRITE SSL_ERROR_ZERO_RETURN "
        "SSL_MODE_AUTO_RETRY"
    )
    if _ffi is None or not all(hasattr(_lib, name) for name in needed.split()):
        return False
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    return all(hasattr(connection, name) for name in ("_ssl", "_into_ssl", "_from_ssl"))


SocketTLS: type[PublicSocketTLS] | type[DirectSocketTLS]
MemoryTLS: type[PublicMemoryTLS] | type[DirectMemoryTLS]
if _has_direct_calls():
    SocketTLS, MemoryTLS = DirectSocketTLS, DirectMemoryTLS
    _ERROR_SSL = _lib.SSL_ERROR_SSL
    _ERROR_WANT_READ = _lib.SSL_ERROR_WANT_READ
    _ERROR_WANT_WRITE = _lib.SSL_ERROR_WANT_WRITE
    _ERROR_ZERO_RETURN = _lib.SSL_ERROR_ZERO_RETURN
    # One of each serves all connections: what is in them is used up before another call.
    _block = _ffi.new("char[]", BLOCK_SIZE)
    _block_view = _ffi.buffer(_block)
    _records = _ffi.new("char[]", DRAIN_SIZE)
    _records_view = memoryview(_ffi.buffer(_records))
else:
    SocketTLS, MemoryTLS = PublicSocketTLS, PublicMemoryTLS
