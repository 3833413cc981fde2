"""The report in a real browser: Debian's chromium, headless, with its driver.

Skipped where the browser, its driver or selenium are absent. ``GRADSCORE_AXE`` names the
``axe.min.js`` of axe-core, by which the page's accessibility is checked.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.report_runs import drawn_run, embedded_run

import gradscore as gs

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = os.environ.get("GRADSCORE_AXE", "")
if not (CHROMIUM and DRIVER):
    pytest.skip("chromium and chromium-driver are not installed", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

WIDTHS, SCHEMES = (360, 768, 1400), ("light", "dark")
HOSTILE = '"><img src=x onerror=document.hit=1><script>document.hit=1</script>'


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return gs.report(embedded_run(folder / "run", limit=80), folder / "report.html")


@pytest.fixture
def page(driver, report):
    show(driver, report)
    return driver


def show(driver, path, width=1000, scheme="light"):
    """Open a page in a window of some width; what was logged before is forgotten."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(Path(path).as_uri())


def find(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def requested(driver):
    """Return the addresses that were asked for since the page was opened."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


def shown(driver):
    """Return what the page shows: slider's place, line's place, texts by set and kind."""
    return driver.execute_script(
        """
        const texts = {};
        for (const one of document.querySelectorAll("[data-show]")) {
          const key = `${one.dataset.set ?? ""} ${one.dataset.show}`;
          (texts[key] ??= []).push(one.textContent);
        }
        return {
          at: Number(document.getElementById("threshold").value),
          line: ["x1", "x2"].map((end) => document.querySelector("[data-line]").getAttribute(end)),
          clip: Number(document.querySelector("[data-clip]").getAttribute("width")),
          told: document.getElementById("threshold").getAttribute("aria-valuetext"),
          dots: [...document.querySelectorAll("[data-dot]")].map(
            (dot) => [Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))]),
          texts,
          data: JSON.parse(document.getElementById("data").textContent),
        };
        """
    )


def expect_agreement(driver):
    """Assert that line, curves and table show what was computed for the slider's place."""
    now = shown(driver)
    at, data, texts = now["at"], now["data"], now["texts"]

    def text(tenths):
        return f"{tenths // 10}.{tenths % 10}%"

    ends = [float(end.rstrip("%")) for end in now["line"]]
    assert ends == pytest.approx([data["at"][at] / 10] * 2)
    assert now["clip"] == data["at"][at]
    assert set(texts[" threshold"]) == {data["thresholds"][at]}
    for place, of_set in enumerate(data["sets"]):
        share, low, high = (of_set[name][at] for name in ("share", "low", "high"))
        assert len(texts[f"{place} flagged"]) == 2  # in the figure and in the table
        assert set(texts[f"{place} flagged"]) == {text(share)}
        assert texts[f"{place} kept"] == [text(1000 - share)]
        assert texts[f"{place} count"] == [str(of_set["flagged"][at])]
        if place == 0:  # the ID set
            share, low, high = 1000 - share, 1000 - high, 1000 - low
        assert texts[f"{place} right"] == [text(share)]
        assert texts[f"{place} interval"] == [f"{text(low)} to {text(high)}"]
    known = data["known"]
    for dot, of_set in zip(now["dots"], data["sets"][1:], strict=True):
        accepted = 1 - of_set["flagged"][at] / of_set["n"]
        assert dot == pytest.approx([100 * accepted, 100 * known["flagged"][at] / known["n"]])
    assert now["told"].startswith(data["thresholds"][at])
    assert f"keeps {text(1000 - known['share'][at])} of ID images" in now["told"]
    return at


def test_the_page_opens_without_a_request_or_an_error(page, report):
    asked = requested(page)
    assert report.as_uri() in asked
    assert all(address == report.as_uri() or address.startswith("data:") for address in asked)
    assert page.get_log("browser") == []
    assert expect_agreement(page) == shown(page)["data"]["start"]


def test_the_slider_moves_table_and_figure_by_keyboard(page):
    slider = find(page, "#threshold")
    start = expect_agreement(page)
    page.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    assert expect_agreement(page) == start + 3
    slider.send_keys(Keys.ARROW_LEFT * 5)
    assert expect_agreement(page) == start - 2
    slider.send_keys(Keys.HOME)
    assert expect_agreement(page) == 0
    slider.send_keys(Keys.END)
    assert expect_agreement(page) == len(shown(page)["data"]["thresholds"]) - 1
    slider.send_keys(Keys.TAB)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert expect_agreement(page) == start


def test_the_slider_moves_table_and_figure_by_mouse(page):
    slider = find(page, "#threshold")
    start = expect_agreement(page)
    width = slider.size["width"]
    ActionChains(page).move_to_element_with_offset(slider, int(0.3 * width), 0).click().perform()
    at = expect_agreement(page)
    assert at > start
    assert at == pytest.approx(0.8 * (len(shown(page)["data"]["thresholds"]) - 1), abs=4)


def test_a_press_and_a_drag_on_the_figure_move_the_threshold(page):
    figure = find(page, "svg.densities")
    width = figure.size["width"]
    chain = ActionChains(page).move_to_element_with_offset(figure, int(0.25 * width), 0)
    chain.click_and_hold().perform()
    pressed = expect_agreement(page)
    assert shown(page)["clip"] == pytest.approx(750, abs=5)
    ActionChains(page).move_by_offset(-int(0.5 * width), 0).release().perform()
    dragged = expect_agreement(page)
    assert shown(page)["clip"] == pytest.approx(250, abs=5)
    assert dragged < pressed
    ActionChains(page).move_by_offset(20, 0).perform()
    assert expect_agreement(page) == dragged  # the button is up


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_its_window(driver, report, width, scheme):
    show(driver, report, width, scheme)
    driver.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    wide = driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in ground[4:-1].split(",")) < 200
    assert dark == (scheme == "dark")


@pytest.mark.skipif(not AXE, reason="GRADSCORE_AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS[::2])
def test_axe_finds_nothing_serious(driver, report, width, scheme):
    show(driver, report, width, scheme)
    driver.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    driver.execute_script(Path(AXE).read_text())
    found = driver.execute_async_script("axe.run().then(arguments[0])")
    assert len(found["passes"]) > 20
    told = [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found["violations"]]
    assert [one for one in told if one[1] in ("serious", "critical")] == []


def test_what_a_run_calls_its_images_is_never_run(driver, tmp_path):
    def named(name, arrays):
        arrays["path"] = np.array([f"{k}{HOSTILE}" for k in arrays["index"]], dtype=object)

    run = drawn_run(tmp_path / "run", change=named, sources={"digits": HOSTILE})
    path = gs.report(run, tmp_path / "report.html")
    show(driver, path)
    assert HOSTILE in find(driver, "main").get_attribute("textContent")
    assert driver.execute_script("return document.hit ?? null") is None
    assert requested(driver) <= {path.as_uri(), "data:,"}
    assert driver.get_log("browser") == []


def test_the_policy_stops_what_is_not_the_pages_own(page):
    page.execute_script(
        """
        const script = document.createElement("script");
        script.textContent = "document.hit = 1";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "https://example.org/x.png";
        document.body.append(image);
        """
    )
    assert page.execute_script("return document.hit ?? null") is None
    told = " ".join(entry["message"] for entry in page.get_log("browser"))
    assert told.count("Content Security Policy") >= 2


def test_paper_shows_what_is_folded_on_the_screen(page):
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = page.execute_script(closed)
    assert before > 3
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script(closed) == 0
    page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert page.execute_script(closed) == before
