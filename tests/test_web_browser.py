"""The page in headless Chromium: what only a browser can tell. Minutes on two busy cores."""

import io
import shutil
import zipfile

import numpy as np
import pytest

pytest.importorskip("viser", reason="the page is made with viser")
playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser")

from PIL import Image

from escherjax.data import images
from escherjax.demo.server import DemoServer
from escherjax.models import eschernet
from escherjax.sample.pipeline import Pipeline
from tests.helpers.random_models import random_params
from tests.helpers.tiny import tiny_config

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_GL = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
TIMEOUT_MS = 120_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def server():
    config = tiny_config(latents__kind="pixels", latents__patch=4)
    model = eschernet.from_config(config)
    params = random_params(model.parameter_shapes(config.resolution), np.random.default_rng(0))
    server = DemoServer(Pipeline(model, params, config.resolution), "tiny", port=0)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def page(server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(TIMEOUT_MS)
        page.requested, page.problems = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}")
        page.wait_for_selector("#escherjax-zone")
        yield page
        browser.close()


def picture(color):
    pixels = np.full((24, 24, 3), 255, np.uint8)
    pixels[6:18, 6:18] = color
    return images.encode_png(pixels)


def test_upload_adjust_generate_scrub_download(page, tmp_path):
    files = [
        {"name": name, "mimeType": "image/png", "buffer": picture(color)}
        for name, color in (("one.png", (200, 30, 20)), ("two.png", (20, 60, 200)))
    ]
    page.get_by_label("choose pictures").set_input_files(files)  # more than one at a time
    for name in ("1: one.png", "2: two.png"):
        page.locator(f'img[title="{name}"]').wait_for()
    pixels = Image.open(io.BytesIO(page.locator("canvas").first.screenshot())).convert("RGB")
    assert len(pixels.getcolors(1 << 24)) > 20, "the 3D view is empty"

    page.get_by_role("button", name="Generate 12 views").click()
    page.get_by_text("Generated in").wait_for()
    first = page.locator('img[src^="blob:"]').first.get_attribute("src")
    label = '//*[normalize-space(text())="View"]'
    number = page.locator(f'xpath={label}/following::input[not(@type="hidden")][1]')
    number.fill("7")
    number.press("Enter")
    page.get_by_text("007.png of 12").wait_for()
    assert page.locator('img[src^="blob:"]').first.get_attribute("src") != first

    with page.expect_download() as download:
        page.get_by_role("button", name="PNG (zip)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "011.png" in archive.namelist()


def test_the_page_asks_no_other_machine_for_anything(page):
    schemes = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
    assert [url for url in page.requested if not url.startswith(schemes)] == []
    assert page.problems == []


def test_a_picture_dropped_anywhere_is_taken(page):
    page.evaluate(
        """data => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], "three.png"));
            window.dispatchEvent(Object.assign(new Event("drop", {cancelable: true}),
                                               {dataTransfer: files}));
        }""",
        list(picture((30, 160, 40))),
    )
    page.locator('img[title="3: three.png"]').wait_for()
