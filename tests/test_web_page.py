"""The whole page without a browser: a web socket uploads, sets, generates, scrubs and downloads."""

import io
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import msgspec
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.helpers.patience import PATIENCE_SEC, wait_until

viser = pytest.importorskip("viser", reason="the page is made with viser")

from escherjax import cameras
from escherjax.data import images
from escherjax.demo.guard import is_same_site
from escherjax.demo.limits import Limits
from escherjax.demo.server import DemoServer
from escherjax.errors import UserError
from escherjax.models import eschernet
from escherjax.sample.pipeline import Pipeline
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config
from tests.helpers.web_client import WebClient

NUM_STEPS = 100  # the same everywhere, so that one program is compiled
PROTOCOL = f"viser-v{viser.__version__}"
LIMITS = Limits(upload_bytes=50_000, targets=8, visitors=3)


@pytest.fixture(scope="module")
def server():
    config = tiny_config(latents__kind="pixels", latents__patch=4)
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(config.resolution), np.random.default_rng(0))
    server = DemoServer(Pipeline(model, params, config.resolution), "tiny", port=0, limits=LIMITS)
    yield server
    server.stop()


@pytest.fixture
def client(server):
    client = WebClient(server.port)
    yield client
    client.close()
    wait_until(lambda: server.num_sessions == 0)  # a visitor who has gone is forgotten


def connect_page(server):
    return connect(f"ws://127.0.0.1:{server.port}", subprotocols=[PROTOCOL], max_size=None)


def picture(color=(200, 30, 20)):
    """A coloured square before white."""
    pixels = np.full((24, 24, 3), 255, np.uint8)
    pixels[6:18, 6:18] = color
    return images.encode_png(pixels)


def transforms_json(c2w):
    frame = {
        "file_path": "../../a.png",
        "transform_matrix": cameras.opengl_from_opencv(c2w).tolist(),
    }
    return json.dumps({"camera_angle_x": 0.8575, "frames": [frame]}).encode()


def frusta(client, group):
    return [name for name in client.nodes if name.startswith(f"/{group}/")]


def test_a_visit_from_pictures_to_files(client):
    client.upload("../a.png", picture())
    client.wait(lambda: client.shows("a.png: 24 x 24 pixels; object centred"))
    client.upload("b.png", picture((20, 60, 200)))
    client.wait(lambda: len(frusta(client, "references")) == 2)
    client.upload("transforms.json", transforms_json(cameras.from_spherical(1.2, 0.5, 1.8)))
    client.wait(lambda: client.shows("Cameras of 1 pictures read"))
    client.set("Azimuth", -90.0)  # of b.png, chosen since it came last
    client.wait(lambda: client.nodes["/references/1"]["position"][1] < -1.7)
    client.set("Views", 3)
    client.wait(lambda: len(frusta(client, "targets")) == 3)
    client.set("Steps", NUM_STEPS)
    client.set("Generate 3 views", True)
    client.wait(lambda: client.shows("Generated in"))
    client.wait(lambda: all(client.nodes[n].get("_image_data") for n in frusta(client, "targets")))

    client.set("View", 2)
    client.wait(lambda: client.shows("002.png of 3"))
    client.set("Download", "PNG (zip)")
    client.wait(lambda: any(len(d) == size for _, size, d in client.files.values()))
    ((name, _, data),) = client.files.values()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = set(archive.namelist())
        run = json.loads(archive.read("run.json"))
    assert name == "views.zip"
    assert {"000.png", "001.png", "002.png", "references/001.png", "transforms.json"} <= names
    assert run["num_steps"] == NUM_STEPS
    azimuths = np.degrees(cameras.to_spherical(np.array(run["reference_c2w"]))[1])
    np.testing.assert_allclose(azimuths, [np.degrees(0.5), -90], atol=1e-3)  # float32


def test_previews_come_while_it_runs_and_cancelling_ends_it(client):
    client.upload("a.png", picture())
    client.upload("b.png", picture())
    client.wait(lambda: len(frusta(client, "references")) == 2)
    client.set("Views", 3)
    client.set("Steps", NUM_STEPS)
    client.wait(lambda: client.shows("Generate 3 views"))
    client.set("Generate 3 views", True)
    client.wait(lambda: client.shows("of 3, 16 x 16 pixels, on its way"))
    client.set("Cancel", True)
    client.wait(lambda: client.shows("Stopped: cancelled."))
    assert not client.shows("Generated in")


def test_what_does_not_work_is_said_in_words(client):
    client.set("Generate 8 views", True)
    client.wait(lambda: client.shows("There is no picture yet"))
    client.upload("a.png", b"no picture")
    client.wait(lambda: client.shows("a.png cannot be decoded"))
    client.upload("../../etc/shadow.png", b"x", size=50_001)
    client.wait(lambda: client.shows("shadow.png must have at most 0.0 MB, got 0.0 MB"))
    client.upload("transforms.json", b"{}")
    client.wait(lambda: client.shows("lists no frames"))
    client.set("Views", 10**9)  # no slider lets a visitor do that
    client.wait(lambda: client.shows("views must be 1 to 8, got 1000000000"))
    assert not client.shows("etc")


def test_a_file_larger_than_it_said_is_dropped(client):
    client.upload("big.png", picture() + bytes(100), size=60)
    client.upload("a.png", picture())
    client.wait(lambda: frusta(client, "references"))
    assert not client.shows("big.png")
    assert client.parts_taken == 1  # nothing was kept of the other


def test_pages_of_other_sites_get_nothing(server, client):
    client.widget("Generate")
    client.send("ShareUrlRequest")  # would open a tunnel, were it heard
    client.upload("a.png", picture())
    client.wait(lambda: frusta(client, "references"))
    assert server._server._share_tunnel is None


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "http://["},
        {"additional_headers": {"Origin": "http://127.0.0.1:1"}},
        {"additional_headers": {"Host": "elsewhere.example"}},
    ],
)
def test_a_socket_of_another_site_is_refused_before_it_is_opened(server, headers):
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{server.port}", subprotocols=[PROTOCOL], **headers)
    assert server.num_sessions == 0 and not server._server._websock_server._live_connections


SECRET = "do not print this"
WRONG = {
    "of no type": msgspec.msgpack.encode({"type": SECRET}),
    "with a field of its own": msgspec.msgpack.encode({"type": "GuiUpdateMessage", SECRET: 1}),
    "no mapping": msgspec.msgpack.encode([SECRET]),
    "no message": SECRET.encode(),
    "text": SECRET,
    "of an unhashable type": msgspec.msgpack.encode({"type": [SECRET]}),
    "large": SECRET.encode() * 100_000,
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_page_sends_closes_the_socket_and_is_not_printed(server, kind, caplog, capfd):
    with connect_page(server) as page:
        page.send(WRONG[kind])
        with pytest.raises(ConnectionClosed):
            while True:
                page.recv(timeout=PATIENCE_SEC)
    assert page.close_code in (1008, 1009)
    wait_until(lambda: server.num_sessions == 0)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())


def test_wrong_values_of_a_widget_are_not_printed(client, caplog, capfd, recwarn):
    client.send("GuiUpdateMessage", uuid=client.widget("Views"), updates={"value": SECRET})
    client.send("GuiUpdateMessage", uuid=client.widget("Views"), updates=SECRET)
    client.set("Path", SECRET)
    client.set("Download", SECRET)
    camera = {**client.camera, "position": (SECRET,), "wxyz": SECRET}
    client.send("ViewerCameraMessage", **camera)
    client.upload("a.png", picture())
    client.wait(lambda: frusta(client, "references"))
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
    assert not any(SECRET in str(warning.message) for warning in recwarn)


def test_more_sockets_than_pages_are_refused(server):
    opened = [connect_page(server) for _ in range(2 * LIMITS.visitors)]
    with pytest.raises(InvalidStatus, match="503"):
        connect_page(server)
    for page in opened:
        page.close()
    wait_until(lambda: server.num_sessions == 0)


@pytest.mark.parametrize(("length", "status"), [(6000, 414), (300, 404), (1900, 404)])
def test_a_long_address_is_refused_in_order(server, length, status):
    with pytest.raises(urllib.error.HTTPError, match=str(status)):
        address = f"http://127.0.0.1:{server.port}/{'a' * length}"
        urllib.request.urlopen(address, timeout=PATIENCE_SEC)


@pytest.mark.parametrize(
    ("origin", "host", "bound_to", "is_own"),
    [
        ("http://127.0.0.1:7860", "127.0.0.1:7860", "127.0.0.1", True),
        ("http://localhost:7860", "localhost:7860", "127.0.0.1", True),
        ("http://[::1]:7860", "[::1]:7860", "::1", True),
        (None, "127.0.0.1:7860", "127.0.0.1", True),
        ("http://evil.example", "127.0.0.1:7860", "127.0.0.1", False),
        ("http://127.0.0.1:9999", "127.0.0.1:7860", "127.0.0.1", False),
        ("http://evil.example:7860", "evil.example:7860", "127.0.0.1", False),  # a name made to lie
        ("https://lab.example", "lab.example", "0.0.0.0", True),
        ("https://evil.example", "lab.example", "0.0.0.0", False),
        ("null", "127.0.0.1:7860", "127.0.0.1", False),
        ("http://[", "127.0.0.1:7860", "127.0.0.1", False),
        (None, None, "127.0.0.1", False),
    ],
)
def test_only_the_pages_own_address_may_talk_to_it(origin, host, bound_to, is_own):
    assert is_same_site(origin, host, bound_to) is is_own


def test_more_visitors_than_allowed_are_told_so(server, client):
    client.widget("Generate")
    others = [WebClient(server.port) for _ in range(2)]
    for other in others:
        other.widget("Generate")
    last = WebClient(server.port)
    last.wait(lambda: last.shows("3 pages are open already"))
    for other in (*others, last):
        other.close()


def test_no_file_of_the_machine_is_served(server):
    root = f"http://127.0.0.1:{server.port}"
    assert b"<html" in urllib.request.urlopen(root, timeout=PATIENCE_SEC).read().lower()
    for path in ("/etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(root + path, timeout=PATIENCE_SEC)


def test_a_port_in_use_is_refused_instead_of_another_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .*Choose another --port"):
            DemoServer(None, port=port)


def test_without_weights_the_page_says_how_to_get_some():
    server = DemoServer(None, port=0)
    client = WebClient(server.port)
    client.wait(lambda: client.shows("make demo"))
    assert client.widgets[client.widget("Generate")]["disabled"]
    client.close()
    server.stop()


def test_help_needs_neither_jax_nor_viser():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['demo', '--help']\n"
        "try: runpy.run_module('escherjax.demo', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'viser', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SEC
    )
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout
