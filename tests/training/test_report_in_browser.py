"""The page of a run as a person has it: in a browser without a network, by mouse and keys, light, dark and narrow."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eco_fast import config
from eco_fast.data.images import Pixels
from eco_fast.training.crops import CROP, Crop, write_crops
from eco_fast.training.report.run_report import write_run_report

pytestmark = pytest.mark.slow

Show = Callable[..., Any]


@pytest.fixture(scope="module")
def crop(photo: Pixels) -> Crop:
    part = photo[60 : 60 + CROP, 150 : 150 + CROP]
    panels = {"LR": part[::2, ::2], "bicubic": 255 - part, "SR": part, "HR": part.transpose(1, 0, 2)}
    return Crop("<b>cat</b>.png", panels, {"bicubic": 29.0, "SR": 31.0})


@pytest.fixture(scope="module")
def page(crop: Crop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, length in (("", 100), ("teacher", 300)):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.toml").write_text(config.dump(config.load("quickstart")), encoding="utf-8")
        rows = [{"step": step, "loss": 50 / step, "alpha": step / length} for step in range(1, length + 1)]
        (folder / name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    start = {"platform": 44 * "x", "command": ["eco-fast", 300 * "y"], "packages": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps([{**start, "device": f"{name} GPU"} for name in "abcdef"]))
    write_crops(folder / "samples", [crop])
    return write_run_report(folder)


@pytest.fixture
def show(browser: Any, page: Path) -> Show:
    """Opens the page in a window of some width, light or dark."""

    def opened(width: int = 1280, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get_log("performance")
        browser.get(page.as_uri())
        return browser

    return opened


def all_of(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def press(browser: Any, *keys: str) -> None:
    """Type keys into whatever has the focus."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def photographed(element: Any) -> Pixels:
    with Image.open(io.BytesIO(base64.b64decode(element.screenshot_as_base64))) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_opens_in_silence_alone_and_no_wider_than_the_window(
    width: int, scheme: str, show: Show, page: Path
) -> None:
    browser = show(width, scheme)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    light = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 248)"
    assert light == (scheme == "light")
    assert len(all_of(browser, ".chart svg path.line")) == 2, "loss and alpha of the student; the teacher is not shown"


def test_keys_move_the_divider(show: Show, crop: Crop) -> None:
    from selenium.webdriver import Keys

    browser = show()
    (stage,), (divider,) = all_of(browser, ".stage"), all_of(browser, ".crop input")
    browser.execute_script("arguments[0].style.width = '384px'", stage)  # four pixels of the screen for one of the crop
    divider.click()
    press(browser, Keys.HOME)
    assert divider.get_attribute("value") == "0"
    seen = photographed(stage)[1::4, 1::4]
    assert np.array_equal(seen[:, 2:], crop.panels["SR"][:, 2:]), "all of it is what is at the right of the divider"
    press(browser, Keys.END)
    seen = photographed(stage)[1::4, 1::4]
    assert np.array_equal(seen[:, :-2], crop.panels["bicubic"][:, :-2])
    press(browser, *[Keys.ARROW_LEFT] * 50)
    assert divider.get_attribute("value") == "50"
    seen, half = photographed(stage)[1::4, 1::4], CROP // 2
    assert np.array_equal(seen[:, : half - 2], crop.panels["bicubic"][:, : half - 2])
    assert np.array_equal(seen[:, half + 2 :], crop.panels["SR"][:, half + 2 :])


def test_a_pointer_moves_the_divider_and_either_side_is_chosen(show: Show, crop: Crop) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.select import Select

    browser = show()
    (stage,), (divider,) = all_of(browser, ".stage"), all_of(browser, ".crop input")
    browser.execute_script("arguments[0].style.width = '384px'; arguments[0].scrollIntoView()", stage)
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(96, 0).release().perform()
    assert divider.get_attribute("value") == "75"
    left, right = (Select(one) for one in all_of(browser, ".sides select"))
    assert [one.text for one in left.options] == ["LR", "bicubic, 29.00 dB", "SR, 31.00 dB", "HR"]
    left.select_by_visible_text("LR")
    right.select_by_visible_text("HR")
    seen = photographed(stage)[1::4, 1::4]
    assert np.array_equal(seen[:, :70], crop.panels["LR"].repeat(2, axis=0).repeat(2, axis=1)[:, :70])
    assert np.array_equal(seen[:, 74:], crop.panels["HR"][:, 74:])


def test_curves_are_zoomed_by_buttons_keys_and_dragging_and_hidden_by_the_legend(show: Show) -> None:
    from selenium.webdriver import ActionChains

    browser = show()
    (said,) = all_of(browser, ".zoom span")
    buttons = {button.text: button for button in all_of(browser, ".zoom button")}
    charts, whole = all_of(browser, ".chart svg[tabindex]"), said.text
    buttons["Zoom in"].click()
    assert said.text == "steps 26 to 75"
    browser.execute_script("arguments[0].focus()", charts[0])
    press(browser, "+")
    assert said.text == "steps 38 to 63"
    press(browser, "0")
    assert said.text == whole
    box = charts[0].rect
    inside = box["width"] - 60  # 52 at the left, 8 at the right
    start = -box["width"] / 2 + 52
    chain = ActionChains(browser).move_to_element_with_offset(charts[0], int(start + 0.2 * inside), 0)
    chain.click_and_hold().move_by_offset(int(0.5 * inside), 0).release().perform()
    first, last = map(int, (said.text.split()[1], said.text.split()[3]))
    assert (abs(first - 20.8), abs(last - 70.3)) < (1, 1)
    buttons["All steps"].click()
    (teacher,) = [one for one in all_of(browser, ".chart:first-of-type .legend button") if one.text == "teacher"]
    assert teacher.get_attribute("aria-pressed") == "false"
    teacher.click()
    assert teacher.get_attribute("aria-pressed") == "true"
    assert len(all_of(charts[0], "path.line")) == 2
    buttons["Zoom in"].click()
    assert said.text == "steps 76 to 225", "the teacher's are as many as three hundred"
    assert browser.get_log("browser") == []
