"""The page of a listening test in headless Chromium: rate, reload, export."""

import json
import shutil
import time

import numpy as np
import pytest

from keras_audiolm.evaluation.listening_score import score_listening_test
from keras_audiolm.evaluation.listening_test import write_listening_test

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
REAL = (True, False, False, True)

pytestmark = [
    pytest.mark.large,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs Debian's packages chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium of the size of a phone; `downloads` is where it saves."""
    from selenium import webdriver

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=400,800")
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads)}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.downloads = downloads
    yield browser
    browser.quit()


@pytest.fixture
def folder(browser, tmp_path):
    """A test of four clips of 10 s, opened in the browser."""
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (len(REAL), 80000)).astype("float32")
    folder = tmp_path / "a test"
    write_listening_test(folder, clips, np.array(REAL), 8000, 3.0, seed=0)
    browser.get((folder / "index.html").as_uri())
    yield folder
    problems = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert not problems


def wait_for(condition, seconds=10):
    """The first value of `condition()` that is not false."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def find(browser, id):
    return browser.find_element("id", id)


def listen(browser):
    """Plays the clip by the key for it, until it is heard."""
    find(browser, "title").click()  # away from the name
    press(browser, " ")
    wait_for(lambda: find(browser, "real").is_enabled())


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def title(browser):
    return find(browser, "title").text


def duration(browser):
    script = "return document.getElementById('audio').duration"
    return wait_for(lambda: browser.execute_script(script))


def export(browser):
    """Presses the button; returns the path of the file."""
    path = browser.downloads / "answers.json"
    path.unlink(missing_ok=True)
    find(browser, "export").click()
    wait_for(path.exists)
    return path


def test_rate_reload_export(browser, folder):
    find(browser, "rater").send_keys("Ada")
    assert not find(browser, "export").is_enabled()
    for number, answer in enumerate(("real", "machine"), 1):
        assert title(browser) == f"Clip {number} of 4"
        assert duration(browser) == pytest.approx(10.0)
        listen(browser)
        find(browser, answer).click()
    assert find(browser, "count").text == "2 of 4 rated"

    browser.refresh()
    assert title(browser) == "Clip 3 of 4"
    assert find(browser, "count").text == "2 of 4 rated"
    assert find(browser, "rater").get_property("value") == "Ada"
    assert "2 of 4 clips" in find(browser, "missing").text
    result = score_listening_test(folder, [export(browser)])
    assert (result["all"]["rated"], result["all"]["unrated"]) == (2, 2)

    for answer in ("real", "real"):  # one is wrong
        assert duration(browser) == pytest.approx(10.0)
        listen(browser)
        find(browser, answer).click()
    assert not find(browser, "missing").is_displayed()
    path = export(browser)
    (one,) = score_listening_test(folder, [path])["raters"]
    assert one["rater"] == "Ada"
    assert (one["correct"], one["rated"], one["unrated"]) == (3, 4, 0)
    given = json.loads(path.read_text())
    times = [answer["time"] for answer in given["answers"].values()]
    assert times == sorted(times) and times[-1] <= given["exported"]


def test_answers_wait_for_the_clip_and_can_be_changed(browser, folder):
    assert not find(browser, "real").is_enabled()
    press(browser, "r")
    assert find(browser, "count").text == "0 of 4 rated"
    listen(browser)
    press(browser, "r")
    wait_for(lambda: title(browser) == "Clip 2 of 4")
    find(browser, "previous").click()
    assert find(browser, "real").get_attribute("aria-pressed") == "true"
    press(browser, "m")  # stays at a clip that was rated before
    assert title(browser) == "Clip 1 of 4"
    assert find(browser, "real").get_attribute("aria-pressed") == "false"
    assert find(browser, "machine").get_attribute("aria-pressed") == "true"


def test_keys_go_from_clip_to_clip_but_not_in_the_name(browser, folder):
    from selenium.webdriver import Keys

    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert title(browser) == "Clip 2 of 4"
    listen(browser)
    find(browser, "rater").send_keys("Mr R", Keys.ARROW_LEFT)
    assert title(browser) == "Clip 2 of 4"
    assert find(browser, "count").text == "0 of 4 rated"


def test_answers_are_of_one_test_and_can_be_removed(browser, folder, tmp_path):
    listen(browser)
    find(browser, "real").click()
    other = tmp_path / "other"
    clips = np.full((4, 8000), 0.1, "float32")
    write_listening_test(other, clips, np.array(REAL), 8000, 3.0, seed=0)
    browser.get((other / "index.html").as_uri())
    assert find(browser, "count").text == "0 of 4 rated"
    browser.get((folder / "index.html").as_uri())
    assert find(browser, "count").text == "1 of 4 rated"
    find(browser, "restart").click()
    browser.switch_to.alert.accept()
    assert find(browser, "count").text == "0 of 4 rated"
    browser.refresh()
    assert find(browser, "count").text == "0 of 4 rated"


def test_nothing_is_asked_of_a_network_and_nothing_is_too_wide(browser, folder):
    script = "return performance.getEntriesByType('resource').map(r => r.name)"
    duration(browser)
    names = browser.execute_script(script)
    assert all(name.startswith(("file:", "data:", "blob:")) for name in names)
    script = "const e = document.documentElement; return e.scrollWidth"
    assert browser.execute_script(f"{script} <= e.clientWidth")
