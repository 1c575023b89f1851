"""The page in a real browser, by keyboard alone. Pictures of what it showed are left in the test's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import morning
import pytest
from page_server import TOKEN, Browser, serving
from stored_films import fresh_database
from waiting import wait_until

from worker.settings import Settings

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
#: The newest film with a result.
NEWEST = morning.NIGHTS * morning.FILMS_A_NIGHT
LACKING = [name for name, found in PROGRAMS.items() if found is None]
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (Debian: chromium chromium-driver)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("morning")
    with fresh_database("sqlite", folder) as database:
        morning.fill(database, folder / "root")
        settings = Settings(home=folder / "home", roots=f"local={folder / 'root'}", serve_token=TOKEN)
        with serving(database, settings, signed_in=False) as opened:
            yield opened


@pytest.fixture(scope="module", params=["light", "dark"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    folder = tmp_path_factory.mktemp("chromium")
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1440,1000",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(PROGRAMS["chromedriver"]))
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": request.param}]}
    )
    opened.scheme = request.param
    yield opened
    opened.quit()


class Keyboard:
    """Presses keys and looks; never touches a mouse."""

    def __init__(self, driver: Any, port: int, shots: Path) -> None:
        self.driver, self.port, self.shots = driver, port, shots

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    @property
    def heading(self) -> str:
        found = self.driver.find_elements(By.TAG_NAME, "h1")
        return found[0].text if found else ""

    def wait_for(self, heading: str) -> None:
        wait_until(lambda: heading in self._heading(), lambda: f"{heading}; it is {self._heading()}", 30)
        wait_until(lambda: self.driver.execute_script("return document.readyState") == "complete", "the page", 30)

    def _heading(self) -> str:
        # Between two pages there is none.
        return self.driver.execute_script("return document.querySelector('h1')?.textContent ?? ''") or ""

    def tab_to(self, text: str, most: int = 60) -> None:
        """Go forward until what has the focus reads ``text``."""
        for _ in range(most):
            self.press(Keys.TAB)
            name = self.driver.execute_script(
                "const it = document.activeElement;"
                "return it.getAttribute('aria-label') || it.innerText || it.name || ''"
            )
            if name.strip() == text:
                # What has the focus can be seen to have it.
                assert float(self.focused.value_of_css_property("outline-width").removesuffix("px")) >= 2
                return
        pytest.fail(f"{text} cannot be reached with the tabulator key")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def shoot(self, name: str) -> None:
        """A picture of the whole page."""
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1440, min(2600, max(1000, height + 140)))
        assert self.driver.save_screenshot(str(self.shots / f"{name}-{self.driver.scheme}.png"))
        self.driver.set_window_size(1440, 1000)


@pytest.fixture
def keyboard(driver: Any, page: Browser, tmp_path_factory: pytest.TempPathFactory) -> Keyboard:
    shots = tmp_path_factory.getbasetemp() / "screenshots"
    shots.mkdir(exist_ok=True)
    driver.get_log("browser")
    return Keyboard(driver, page.port, shots)


@pytest.fixture
def inside(keyboard: Keyboard) -> Keyboard:
    keyboard.driver.get(f"http://127.0.0.1:{keyboard.port}/?token={TOKEN}")
    keyboard.wait_for("Worklist")
    return keyboard


def test_signing_in(keyboard: Keyboard) -> None:
    keyboard.driver.get(f"http://127.0.0.1:{keyboard.port}/queue")
    keyboard.driver.delete_all_cookies()
    keyboard.driver.get(f"http://127.0.0.1:{keyboard.port}/queue")
    keyboard.shoot("sign-in")
    assert keyboard.focused.get_attribute("id") == "token"
    keyboard.press(TOKEN, Keys.ENTER)
    keyboard.wait_for("Queue")
    # Being sent to the form is an answer 401, which the browser notes; nothing else is wrong.
    assert [error for error in keyboard.errors() if "401" not in error] == []


def test_the_worklist_and_a_film(inside: Keyboard) -> None:
    inside.shoot("worklist")
    inside.press(Keys.TAB)
    assert inside.focused.text == "Skip to the content"
    inside.press(Keys.ENTER, "j", "j", "k")
    films = inside.driver.find_elements(By.CSS_SELECTOR, "a.film")
    assert inside.focused == films[0]
    first_film = next(
        place for place, film in enumerate(films) if film.text == str(morning.NIGHTS * morning.FILMS_A_NIGHT)
    )
    inside.press(*[Keys.ARROW_DOWN] * first_film)
    inside.press(Keys.ENTER)
    inside.wait_for("Film")
    wait_until(lambda: _loaded(inside.driver), "the pictures", 60)
    inside.shoot("film")
    layer = "return document.getElementById('layer').getAttribute('href')"
    inside.press("r")
    wait_until(lambda: "region=" not in inside.driver.execute_script(layer), "the regions to go")
    inside.press("h")
    wait_until(lambda: "heat=" in inside.driver.execute_script(layer).replace("heat=&", ""), "the activation map")
    assert "heat=" in inside.driver.current_url
    wait_until(lambda: _loaded(inside.driver), "the activation map", 60)
    inside.shoot("film-heat")
    number = inside.heading
    inside.press("j")
    wait_until(lambda: inside._heading() not in ("", number), "the older film")
    inside.wait_for("Film")
    inside.press("u")
    inside.wait_for("Worklist")
    assert inside.errors() == []


def test_a_slider_moves_the_window(inside: Keyboard) -> None:
    inside.driver.get(f"http://127.0.0.1:{inside.port}/film/{NEWEST}")
    inside.tab_to("width")
    picture = "return document.getElementById('picture').getAttribute('href')"
    inside.press(*[Keys.ARROW_LEFT] * 40)
    wait_until(lambda: "width=60" in inside.driver.execute_script(picture), "the window")
    inside.press(Keys.SHIFT + Keys.TAB + Keys.NULL)
    wait_until(lambda: _loaded(inside.driver), "the pictures", 60)
    assert inside.errors() == []


def test_a_film_without_its_file(inside: Keyboard) -> None:
    inside.driver.get(f"http://127.0.0.1:{inside.port}/film/{NEWEST - 8}")
    inside.wait_for("Film")
    assert inside.driver.find_element(By.ID, "gone").is_displayed()
    wait_until(lambda: _loaded(inside.driver), "the regions", 60)
    assert inside.errors() == []


def test_filters_by_keyboard(inside: Keyboard) -> None:
    inside.press("/")
    assert inside.focused.get_attribute("name") == "flag"
    inside.press("any", Keys.TAB)
    inside.tab_to("Show")
    inside.press(Keys.ENTER)
    wait_until(lambda: "flag=any" in inside.driver.current_url, "the filter")
    inside.wait_for("Worklist")
    states = {element.text for element in inside.driver.find_elements(By.CSS_SELECTOR, ".films .state")}
    assert states == {"done"}
    assert inside.errors() == []


def test_every_page_and_a_retry(inside: Keyboard) -> None:
    for name in ("Performance", "Drift", "Queue", "Failed"):
        inside.tab_to(name)
        inside.press(Keys.ENTER)
        inside.wait_for(name)
        inside.shoot(name.lower())
    before = len(inside.driver.find_elements(By.CSS_SELECTOR, ".films tbody tr"))
    label = inside.driver.find_element(By.CSS_SELECTOR, ".films button").get_attribute("aria-label")
    inside.tab_to(label)
    inside.press(Keys.ENTER)
    wait_until(lambda: "retried=1" in inside.driver.current_url, "the retry")
    assert len(inside.driver.find_elements(By.CSS_SELECTOR, ".films tbody tr")) == before - 1
    assert inside.errors() == []


def test_the_queue_lives(inside: Keyboard) -> None:
    inside.driver.get(f"http://127.0.0.1:{inside.port}/queue")
    wait_until(lambda: inside.driver.find_element(By.ID, "live").text == "Live.", "the first event", 30)
    assert inside.errors() == []


CONTRAST = """
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
  }
  return [255, 255, 255];
};
const poor = [];
for (const element of document.querySelectorAll("body *")) {
  const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!words || element.closest("svg, noscript") || element.offsetParent === null) continue;
  const style = getComputedStyle(element);
  const [one, two] = [luminance(parse(style.color).slice(0, 3)), luminance(behind(element))].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (two + 0.05);
  if (ratio < 4.5) poor.push([element.tagName, element.className, element.textContent.trim().slice(0, 30), ratio]);
}
return JSON.stringify(poor);
"""


@pytest.mark.parametrize("path", ["/", f"/film/{NEWEST}", "/performance", "/drift", "/queue", "/failed", "/nothing"])
def test_contrast(inside: Keyboard, path: str) -> None:
    inside.driver.get(f"http://127.0.0.1:{inside.port}{path}")
    assert json.loads(inside.driver.execute_script(CONTRAST)) == []


def _loaded(driver: Any) -> bool:
    return driver.execute_script(
        "return performance.getEntriesByType('resource').filter(it => /film.jpg|layer.png/.test(it.name))"
        ".every(it => it.responseEnd > 0)"
    )
