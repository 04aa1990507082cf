"""Closes what viser leaves open to whoever reaches the page.

viser takes uploads of any size into memory, accepts web sockets of any site that a browser has
open, messages of 50 MB, which it prints if they are wrong, and opens a public tunnel to this
machine when a page asks for one. It has no settings for these (the tunnel came with pull request
139 of https://github.com/viser-project/viser), so how it serves and its private message handlers
are replaced, here and nowhere else; a version that has them elsewhere is refused at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from escherjax.errors import UserError

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_MESSAGE_BYTES = 2**20  # of one message; browsers send files in parts of half of it
_PATH_LENGTH = 2000  # of an address; the page has one file
_SOCKETS_PER_VISITOR = 4  # connections of all kinds at a time
_AT_ONCE = 4  # files of the largest size that one client may be uploading at a time
_patching = threading.Lock()

log = logging.getLogger("escherjax.demo")


def close_tunnel(server: Any) -> None:
    """Makes a viser server ignore requests for a public share address."""
    from viser import _messages

    with _known_viser():
        for message in (_messages.ShareUrlRequest, _messages.ShareUrlDisconnect):
            server._websock_server.unregister_handler(message)


@contextlib.contextmanager
def serving(host: str, visitors: int) -> Iterator[None]:
    """A viser server that is made inside talks to its own page alone, in small messages.

    Others are refused before viser hears of them: 403 by their Origin and Host, 414 for long
    addresses, 503 where too many are connected. What a message holds is never printed.

    Args:
        host: the address that is listened on.
        visitors: pages that may be open; a few more get an answer.
    """
    from viser import _threadpool_exceptions as failures
    from viser.infra import _messages
    from websockets.asyncio import server as sockets

    # All three would show what was sent.
    quiet = logging.getLogger("escherjax.demo.sockets")
    quiet.setLevel(logging.CRITICAL + 1)
    with _known_viser():
        assert failures.traceback and _messages.warnings
    failures.traceback = SimpleNamespace(print_exception=lambda _, error, *__: _report(error))  # type: ignore[assignment]
    _messages.warnings = SimpleNamespace(warn=lambda *_, **__: None)  # type: ignore[assignment]
    serve = sockets.serve

    class Connection(sockets.ServerConnection):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.server.handlers) > _SOCKETS_PER_VISITOR * visitors:
                transport.abort()

    def guarded(handler: Any, *arguments: Any, process_request: Any, **options: Any) -> Any:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: _report(context.get("exception"))
        )
        options |= {"max_size": _MESSAGE_BYTES, "max_queue": 4, "logger": quiet}
        return serve(
            functools.partial(_handle, handler),
            *arguments,
            process_request=functools.partial(_answer, process_request, host, 2 * visitors),
            create_connection=Connection,
            **options,
        )

    with _patching:
        sockets.serve = guarded  # type: ignore[assignment, misc]
        try:
            yield  # viser calls it before its server is made
        finally:
            sockets.serve = serve  # type: ignore[misc]


def _answer(serve_file: Any, host: str, most: int, connection: Any, request: Any) -> Any:
    """The refusal of a request, or a file of the page; None opens a web socket."""
    if len(request.path) > _PATH_LENGTH:
        return connection.respond(http.HTTPStatus.REQUEST_URI_TOO_LONG, "too long\n")
    origins, hosts = (request.headers.get_all(name) for name in ("Origin", "Host"))
    (origin, *more), (name, *others) = origins or [None], hosts or [None]
    if more or others or not is_same_site(origin, name, host):
        log.warning("refused a page of another site")
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not of this page\n")
    upgrades = request.headers.get_all("Upgrade")
    if upgrades == ["websocket"]:
        full = len(connection.server.connections) >= most
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "full\n") if full else None
    try:
        answer = None if upgrades else serve_file(connection, request)
    except (OSError, ValueError):  # a name that no file can have
        answer = connection.respond(http.HTTPStatus.NOT_FOUND, "not found\n")
    return answer or connection.respond(http.HTTPStatus.BAD_REQUEST, "not understood\n")


async def _handle(handler: Any, connection: Any) -> None:
    """Hands a web socket to viser; one that sends what no page sends is closed."""
    import viser
    from websockets.frames import CloseCode

    if connection.subprotocol != f"viser-v{viser.__version__}":  # viser would print what it is
        await connection.close(CloseCode.PROTOCOL_ERROR, f"needed viser {viser.__version__}")
        return
    try:
        await handler(connection)
    except Exception as error:
        log.warning("closed a page that sent what cannot be read (%s)", type(error).__name__)
        await connection.close(CloseCode.POLICY_VIOLATION, "not understood")


def _report(error: BaseException | None) -> None:
    """Logs where an error was raised, not its text, which may quote a visitor's message."""
    if error is not None:
        places = "".join(traceback.format_tb(error.__traceback__, limit=-8))
        log.error("%s in the page\n%s", type(error).__name__, places)


def is_same_site(origin: str | None, host: str | None, bound_to: str) -> bool:
    """Whether Origin is Host's own page, and Host a local name if the server is bound to one."""
    if host is None:
        return False
    try:
        name = urlsplit(f"//{host}").hostname
        site = None if origin is None else urlsplit(origin).netloc
    except ValueError:  # no address
        return False
    if bound_to in _LOCAL_HOSTS and name not in _LOCAL_HOSTS:
        return False
    return site is None or site == host


def limit_uploads(client: Any, max_bytes: int, refuse: Callable[[str, int], None]) -> None:
    """Refuses a client's files that are announced, or turn out, to be larger than `max_bytes`.

    refuse(file name, bytes) is called for each that is refused before it was sent.
    """
    from viser import _messages

    with _known_viser():
        connection, gui = client._websock_connection, client.gui
        states = gui._current_file_upload_states
        start, part = gui._handle_file_transfer_start, gui._handle_file_transfer_part
        connection.unregister_handler(_messages.FileTransferStartUpload, start)
        connection.unregister_handler(_messages.FileTransferPart, part)

    def checked_start(client_id: int, message: Any) -> None:
        size, under_way = message.size_bytes, sum(state["total_bytes"] for state in states.values())
        fits = 0 <= size <= max_bytes and under_way + size <= _AT_ONCE * max_bytes
        if fits and message.part_count <= 1 + size // 1024:
            start(client_id, message)
        else:
            refuse(str(message.filename), int(size))

    def checked_part(client_id: int, message: Any) -> None:
        state = states.get(message.transfer_uuid)
        if state is None:
            return
        if state["transferred_bytes"] + len(message.content) > state["total_bytes"]:
            states.pop(message.transfer_uuid, None)  # more than announced
            return
        part(client_id, message)

    connection.register_handler(_messages.FileTransferStartUpload, checked_start)
    connection.register_handler(_messages.FileTransferPart, checked_part)


class _known_viser:
    """Turns an attribute that this version of viser lacks into advice."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, (AttributeError, AssertionError, ValueError)):
            raise UserError(
                f"this version of viser is not supported ({error}); pip install 'viser>=1.1,<1.2'."
            ) from error
