"""A headless Chromium, where there is one."""

import contextlib
import shutil

import numpy as np
import pytest

#: Names of the browser and its driver.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="There is no Chromium: apt-get install chromium chromium-driver.",
)


@contextlib.contextmanager
def opened(width=1280, height=1400, dark=False):
    """A selenium driver with a window of this size; what its console says is kept."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wanted]})
        yield driver
    finally:
        driver.quit()


class Tab:
    """What a person does in a tab."""

    def __init__(self, driver, address, settings=""):
        self.driver = driver
        driver.get("about:blank")  # Another fragment alone would load nothing.
        driver.get(f"{address}#{settings}")
        self.wait("the first picture", "document.getElementById('python').textContent")

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def wait(self, what, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        ready = f"return Boolean({condition}) && !document.body.classList.contains('busy')"
        WebDriverWait(self.driver, 300, 0.05).until(lambda d: d.execute_script(ready), what)

    def find(self, css):
        return self.driver.find_element("css selector", css)

    def click(self, css):
        found = self.find(css)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def type(self, css, text):
        box = self.find(css)
        self.run("arguments[0].value = ''", box)
        box.send_keys(text)

    def source(self, css):
        return self.find(css).get_attribute("src")

    def text(self, css):
        return self.run("return document.querySelector(arguments[0]).textContent", css)

    def tokens(self):
        names = self.run("return [...document.querySelectorAll('.token')].map((x) => x.ariaLabel)")
        return np.array([int(name.split("code ")[1].split(",")[0]) for name in names])

    def visible(self, css):
        return self.find(css).is_displayed()

    def errors(self):
        """What the console complains of, but for answers that refuse."""
        lines = [x["message"] for x in self.driver.get_log("browser") if x["level"] == "SEVERE"]
        return [line for line in lines if "the server responded with a status of 400" not in line]
