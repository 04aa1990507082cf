"""Closes what viser leaves open to whoever reaches the page.

viser takes uploads of any size into memory, accepts web sockets of any site that a browser has
open, and opens a public tunnel to this machine when a page asks for one. It has no settings for
these (https://github.com/viser-project/viser; the tunnel came with its pull request 139), so its
private message handlers are replaced, here and nowhere else; a version of viser that has them
elsewhere is refused at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from escherjax.errors import UserError

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_AT_ONCE = 4  # files of the largest size that one client may be uploading at a time


def close_tunnel(server: Any) -> None:
    """Makes a viser server ignore requests for a public share address."""
    from viser import _messages

    with _known_viser():
        for message in (_messages.ShareUrlRequest, _messages.ShareUrlDisconnect):
            server._websock_server.unregister_handler(message)


def is_own_page(server: Any, client: Any) -> bool:
    """Whether a client's web socket comes from the page that this server itself served.

    Browsers name the page in the Origin header. A server on a local address answers to local names
    only, so that no other name can be made to point here.
    """
    with _known_viser():
        headers = server._websock_server._live_connections[client.client_id].request.headers
    return is_same_site(headers.get("Origin"), headers.get("Host"), server.get_host())


def is_same_site(origin: str | None, host: str | None, bound_to: str) -> bool:
    """Whether Origin is Host's own page, and Host a local name if the server is bound to one."""
    if host is None:
        return False
    name = urlsplit(f"//{host}").hostname
    if bound_to in _LOCAL_HOSTS and name not in _LOCAL_HOSTS:
        return False
    return origin is None or urlsplit(origin).netloc == host


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
