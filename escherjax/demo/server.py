"""Serves the page: one session for each open page, one queue of requests for all."""

from __future__ import annotations

import contextlib
import functools
import io
import socket
import threading
from typing import Any

import numpy as np

from escherjax.cameras import PUBLISHED_FOV_DEG
from escherjax.demo import guard, jobs
from escherjax.demo.limits import Limits
from escherjax.demo.page import Page
from escherjax.demo.panels import ADVICE
from escherjax.demo.photos import example_views
from escherjax.demo.session import Session
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample.pipeline import Pipeline

NUM_STEPS = 25  # where the slider starts
_BRAND = (31, 105, 196)
_DEFAULT_RESOLUTION = 256  # without a network


class DemoServer:
    """Serves the page until `stop`.

    Args:
        pipe: the network, or None for a page that cannot generate views.
        name: of the weights, as visitors see it.
        host: address to listen on.
        port: 0 takes a free one.
        limits: what one visitor may ask for; None for the defaults.

    Raises:
        UserError: if viser is missing, or the address cannot be taken.
    """

    def __init__(
        self,
        pipe: Pipeline | None,
        name: str = "",
        host: str = "127.0.0.1",
        port: int = 7860,
        limits: Limits | None = None,
    ):
        try:
            import viser
        except ImportError as error:
            raise UserError("the page needs viser: pip install 'escherjax[demo]'.") from error
        self._limits = limits or Limits()
        self._about = _about(pipe, name)
        self._sampling = Sampling(num_steps=NUM_STEPS, guidance_scale=3.0)
        self._resolution, self._fov_deg = _DEFAULT_RESOLUTION, PUBLISHED_FOV_DEG
        self._queue: jobs.JobQueue | None = None
        if pipe is not None:
            self._resolution = pipe.resolution
            self._fov_deg = pipe.facts.fov_deg or PUBLISHED_FOV_DEG
            self._sampling = Sampling(NUM_STEPS, pipe.facts.guidance_scale)
            self._queue = jobs.JobQueue(functools.partial(jobs.generate, pipe), self._limits)
        self._pages: dict[int, Page | None] = {}  # None: under construction
        self._lock = threading.Lock()
        self._example_lock = threading.Lock()
        self._example: tuple[np.ndarray, np.ndarray] | None = None

        _check_address(host, port)
        with (
            guard.serving(host, self._limits.visitors),
            contextlib.redirect_stdout(io.StringIO()),  # its own banner
        ):
            self._server = viser.ViserServer(host=host, port=port, label="escherjax", verbose=False)
        guard.close_tunnel(self._server)
        self._server.gui.configure_theme(
            show_logo=False, show_share_button=False, brand_color=_BRAND
        )
        self._server.gui.main_panel.dock_right()
        self._server.gui.main_panel.set_width(350)
        self._server.initial_camera.position = (3.5, -2.2, 2.2)
        self._server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._server.on_client_connect(self._connect)
        self._server.on_client_disconnect(self._disconnect)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.get_port()

    @property
    def num_sessions(self) -> int:
        """Number of visitors whose work it keeps."""
        with self._lock:
            return len(self._pages)

    def stop(self) -> None:
        """Cancels all jobs and closes the address."""
        if self._queue is not None:
            self._queue.close()
        self._server.stop()

    def wait(self) -> None:
        """Serves until the process is interrupted."""
        threading.Event().wait()

    def _connect(self, client: Any) -> None:
        with self._lock:
            full = len(self._pages) >= self._limits.visitors
            if not full:
                self._pages[client.client_id] = None  # taken before it is built
        if full:
            client.gui.add_markdown(
                f"**{self._limits.visitors} pages are open already**, the most that this server "
                "takes. Close another one, or come back later, and load this page again."
            )
            return
        session = Session(self._resolution, self._limits, self._sampling, self._fov_deg)
        with client.atomic():  # nobody presses a button before it is wired
            page = Page(client, session, self._queue, self._example_views, self._about)
        with self._lock:
            stays = client.client_id in self._pages
            if stays:
                self._pages[client.client_id] = page
        if not stays:
            page.close()

    def _disconnect(self, client: Any) -> None:
        with self._lock:
            page = self._pages.pop(client.client_id, None)
        if page is not None:
            page.close()

    def _example_views(self) -> tuple[np.ndarray, np.ndarray]:
        with self._example_lock:
            if self._example is None:
                self._example = example_views(self._resolution)
            return self._example


def _about(pipe: Pipeline | None, name: str) -> str:
    if pipe is None:
        return ADVICE
    side, facts = pipe.resolution, pipe.facts
    text = f"Network {name}: views of {side} x {side} pixels"
    if facts.num_references is not None:
        low, high = facts.num_references
        text += f", trained with {low}{f' to {high}' if high != low else ''} pictures a scene"
    if facts.trained_steps is not None:
        text += f", {facts.trained_steps} steps"
    return text + "."


def _check_address(host: str, port: int) -> None:
    """Raises UserError if the port is taken; viser would silently take the next free one."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port must be 0 to 65535, got {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}); is another page "
            "open there? Choose another --port, or 0 for a free one."
        ) from error
