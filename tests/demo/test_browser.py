"""The page in a real browser: loads, draws, changes a token, paints, and tells mistakes."""

import json

import browser
import numpy as np
import pytest
from browser import Tab

from var_jax.demo.export import export

pytestmark = browser.needs_chromium


@pytest.fixture(scope="module")
def driver():
    with browser.opened() as driver:
        yield driver


#: With a high temperature an untrained model's pictures differ.
BOLD = "label=3&seed=5&temperature=3"


def test_it_draws_and_the_link_holds_all_settings(driver, page):
    tab = Tab(driver, page.address, BOLD)
    tab.click("#play") if tab.text("#play") == "Stop" else None
    drawn = page.ask("/draw", {"label": 3, "seed": 5, "pins": [], **settings(page, temperature=3)})
    assert tab.tokens().tolist() == sum((level["tokens"] for level in drawn[1]["levels"]), [])
    assert tab.text("#python") == drawn[1]["python"]
    before = tab.text("#python")
    tab.click("#next-seed")
    tab.wait(
        "another seed", f"document.getElementById('python').textContent != {json.dumps(before)}"
    )
    tab.click("#compare")
    tab.wait("the unguided one", "!document.getElementById('unguided-figure').hidden")
    tab.click("#set-cfg-each")
    tab.type("#set-cfg-2", "7")
    tab.wait("guidance of level 3", "document.getElementById('python').textContent.includes('7.0')")
    link, tokens, python = driver.current_url, tab.tokens(), tab.text("#python")
    assert "seed=6" in link and "compare=true" in link and "cfg=0_0.5_7_1.5" in link
    other = Tab(driver, *link.split("#"))
    np.testing.assert_array_equal(other.tokens(), tokens)
    assert other.text("#python") == python and other.visible("#unguided-figure")
    # The slider shows what fewer levels give.
    other.run(
        "const s = document.getElementById('level'); s.value = 1; "
        "s.dispatchEvent(new Event('input'))"
    )
    assert other.source("#image") == drawn_levels(page, other)[0]
    assert not tab.errors()


def settings(page, **changed):
    facts = json.loads(page.ask("/data.js", b"", "GET")[1].split("=", 1)[1].rstrip(";\n"))
    return facts["settings"] | changed


def drawn_levels(page, tab):
    asked = tab.run("return Settings.drawing()")
    return [level["image"] for level in page.ask("/draw", asked)[1]["levels"]]


def test_a_token_that_is_changed_changes_what_follows(driver, page):
    tab = Tab(driver, page.address, BOLD)
    before = tab.tokens()
    tab.click('[data-position="2"]')
    assert tab.text("#token-summary").startswith(f"level 2, row 1, column 2: code {before[2]}, ")
    tab.type("#any-code", str((before[2] + 9) % 32))
    tab.click("#put-any")
    tab.wait("the change", "!document.getElementById('before-figure').hidden")
    after = tab.tokens()
    np.testing.assert_array_equal(np.flatnonzero(after[:5] != before[:5]), [2])
    assert (after[5:] != before[5:]).any()
    changed = tab.run(
        "return [...document.querySelectorAll('.changed')].map((x) => +x.dataset.position)"
    )
    np.testing.assert_array_equal(changed, np.setdiff1d(np.flatnonzero(after != before), 2))
    assert "pins=2." in driver.current_url
    tab.click("#inspector tr:not(.current) button")
    tab.wait("a candidate", "Object.keys(Settings.state.pins).length == 1")
    tab.type("#any-code", "99")
    tab.click("#put-any")
    tab.wait("the refusal", "!document.getElementById('error').hidden")
    assert tab.text("#error") == "The code of a pin is 99; give a whole number from 0 to 31."
    tab.click("#unpin")
    tab.wait("the undoing", "document.getElementById('before-figure').hidden")
    np.testing.assert_array_equal(tab.tokens(), before)


def test_a_brushed_part_is_drawn_anew(driver, page):
    from selenium.webdriver import ActionChains

    tab = Tab(driver, page.address, BOLD)
    tab.click("#paint")
    tab.wait("the refusal", "!document.getElementById('error').hidden")
    assert "brush over what is to be drawn anew" in tab.text("#error")
    canvas = tab.find("#canvas")
    tab.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    chain = ActionChains(driver).move_to_element_with_offset(canvas, -60, -60).click_and_hold()
    chain.move_by_offset(60, 60).move_by_offset(30, 0).release().perform()
    tab.click("#paint")
    tab.wait("the result", "!document.getElementById('painted-figure').hidden")
    painted = tab.source("#painted")
    assert painted != drawn_levels(page, tab)[-1] and "model.edit(" in tab.text("#python")
    link = driver.current_url
    again = Tab(driver, *link.split("#"))
    again.wait("the result", "!document.getElementById('painted-figure').hidden")
    assert again.source("#painted") == painted
    again.click('[data-area="none"]')
    assert not again.errors()


def test_a_mistake_gets_a_sentence_and_the_page_goes_on(driver, page):
    tab = Tab(driver, page.address, BOLD)
    tokens = tab.tokens()
    tab.type("#seed", "-3")
    tab.wait("the refusal", "!document.getElementById('error').hidden")
    assert tab.text("#error") == "seed is -3; give a whole number from 0 to 4294967295."
    tab.type("#seed", "5")
    tab.wait("the picture", "document.getElementById('error').hidden")
    np.testing.assert_array_equal(tab.tokens(), tokens)
    bad = "label=99&seed=x&pins=<b>&cfg=1_2&mask=zz&unknown=1"
    driver.get("about:blank")
    driver.get(f"{page.address}#{bad}")
    tab.wait("the refusal", "!document.getElementById('error').hidden")
    assert "label is 99" in tab.text("#error")


def test_two_people_at_once_see_their_own(driver, page):
    with browser.opened() as other:
        tabs = [Tab(d, page.address, f"label={i}&seed={i}&temperature=3")
                for i, d in enumerate((driver, other))]  # fmt: skip
        for seed in (11, 12):
            for i, tab in enumerate(tabs):
                tab.type("#seed", str(seed + 10 * i))
            for i, tab in enumerate(tabs):
                tab.wait("its picture", "document.getElementById('python').textContent"
                         f".includes('seed={seed + 10 * i},')")  # fmt: skip
                asked = tab.run("return Settings.drawing()")
                assert asked["label"] == i and asked["seed"] == seed + 10 * i
                drawn = page.ask("/draw", asked)[1]["levels"]
                assert tab.tokens().tolist() == sum((level["tokens"] for level in drawn), [])


def test_it_fits_a_telephone_and_the_keyboard_reaches_tokens(page):
    from selenium.webdriver.common.keys import Keys

    with browser.opened(width=360, height=740, dark=True) as driver:
        tab = Tab(driver, page.address, BOLD)
        assert tab.run("return document.documentElement.scrollWidth") <= 360
        tab.find('[data-position="1"]').send_keys(Keys.ARROW_RIGHT)
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        assert tab.text("#token-summary").startswith("level 2, row 1, column 2")
        unnamed = tab.run(
            "return [...document.querySelectorAll('input, select, button, canvas, img')].filter("
            "(x) => x.checkVisibility() && !x.ariaLabel && !x.labels?.length && !x.alt && "
            "!x.textContent.trim()).map((x) => x.outerHTML)"
        )
        assert unnamed == []


def test_an_exported_page_needs_no_server(driver, answers, tmp_path):
    count = export(answers, tmp_path / "site")
    assert count == 80
    tab = Tab(driver, (tmp_path / "site/index.html").as_uri())
    assert not tab.visible("#paint-panel") and not tab.visible("#sliders")
    before = tab.tokens()
    tab.click("#next-seed")
    tab.wait("another seed", "document.getElementById('python').textContent.includes('seed=1')")
    assert (tab.tokens() != before).any()
    tab.click("#compare")
    tab.wait("the unguided one", "!document.getElementById('unguided-figure').hidden")
    tab.click('[data-position="2"]')
    assert "level 2, row 1, column 2" in tab.text("#token-summary")
    assert not driver.find_elements("css selector", "#put-any")
    tab.type("#seed", "7")
    tab.wait("the refusal", "!document.getElementById('error').hidden")
    assert tab.text("#error") == "seed is 7; 0 to 3 are stored."
    assert not tab.errors()
