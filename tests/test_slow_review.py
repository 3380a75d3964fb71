"""The review page in a real Chromium: keyboard only, servers killed, two windows at once."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import chromium
from chromium import Browser, Page
from finetune_skills.labels import LABELS, Label, complete, load_labels
from reviews import INJECTIONS, Project, Server, begin, pilot, talk

pytestmark = pytest.mark.slow
SAID = "[...document.querySelectorAll('.yours .answer')].map((each) => each.textContent).join(' ')"
CURRENT = "document.querySelector('.criterion.current')?.dataset.id"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium.program() is None:
        pytest.skip("chromium: not on the PATH; on Debian: apt-get install chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return pilot(tmp_path / "desk")


@contextmanager
def started(root: Path, *flags: str) -> Iterator[Server]:
    """A server whose address nobody has opened yet."""
    server = begin(root, "--by", "Ann", *flags)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        for pipe in (server.process.stdout, server.process.stderr):
            if pipe:
                pipe.close()


def at(page: Page, item: str) -> None:
    page.until(f"location.pathname === '/t/{item}' && document.querySelector('.current')")


def address(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def labels(project: Project) -> dict[str, Label]:
    return {label.id: label for label in load_labels(project.root)}


def test_five_are_labelled_with_the_keyboard_alone(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.press("c")
        at(page, "t1")
        page.press("r", "g", "Enter")  # all judges agree: good, and on
        at(page, "t2")
        page.press(*["Enter"] * 6, "y", *["Enter"] * 7, "b", "Enter")  # H1: the judges say NO
        at(page, "t3")
        page.press("n", "a", "y", "r", "e")
        page.write("said twice")
        page.press("Escape", "u", "Enter")
        at(page, "t4")
        page.press("r", "j", "k", "Enter", "n", "g", "Enter")  # F1 is an ERROR: nothing to agree to
        at(page, "t5")
        page.press("r", "m")
        page.write("length")
        page.press("Escape", "g", "Enter")
        page.until("document.body.innerText.includes('All read.')")
        assert "5 of 5 done" in page.text()
    found = labels(project)
    assert all(complete(label, project.rubric) and not label.stale for label in found.values())
    verdicts = {item: label.verdict for item, label in found.items()}
    assert verdicts == {"t1": "good", "t2": "bad", "t3": "unsure", "t4": "good", "t5": "good"}
    assert (found["t2"].criteria["H1"], "H1" in found["t2"].agreed) == ("YES", False)
    assert [found["t3"].criteria[c] for c in ("S1", "S2", "S3")] == ["NO", "NA", "YES"]
    assert (found["t3"].notes, found["t4"].criteria["F1"]) == ("said twice", "NO")
    assert found["t5"].rubric_misses == "length"


def test_a_reload_loses_nothing(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        page.press("Enter", "n", "e")
        page.write("typed a moment ago")
        page.reload()
        page.until("document.querySelector('#notes').value === 'typed a moment ago'")
        page.until(f"{SAID}.startsWith('YES NO -')")
        wait_for(lambda: labels(project)["t1"].notes == "typed a moment ago")
        kept = labels(project)["t1"].criteria
        assert list(kept.values())[:2] == ["YES", "NO"]


def test_a_save_that_overtakes_a_reload_is_shown(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        state = page.eval("document.getElementById('review').dataset.state")
        page.press("n")
        page.saved()
        old = f"document.getElementById('review').dataset.state = {json.dumps(state)}"
        late = f"document.addEventListener('readystatechange', () => {{ {old} }}, {{once: true}})"
        page.send("Page.addScriptToEvaluateOnNewDocument", source=late)
        page.reload()  # as if the server had made it before the save
        page.until("document.getElementById('saved')?.textContent === 'Brought up to date'")
        assert page.eval(SAID).startswith("NO")


def wait_for(true: object, patience: float = 20) -> None:
    end = time.monotonic() + patience
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("closed", [False, True], ids=["page stays open", "page was closed"])
def test_a_server_killed_in_the_middle_loses_nothing(
    browser: Browser, project: Project, closed: bool
) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t2"))
        page.press("Enter", "Enter")
        page.saved()
        server.kill()
        page.press("n", "g")
        page.until("document.getElementById('notice').textContent.startsWith('Could not save')")
        if closed:
            browser.send("Target.closeTarget", targetId=page.target)
    with started(project.root) as again:
        assert again.port == server.port
        if not closed:
            page.until("document.getElementById('notice').textContent.includes('Open the new')")
        other = browser.open(again.url)
        wait_for(lambda: labels(project)["t2"].verdict == "good")
        if not closed:
            page.saved()
        other.go(address(again, "/t/t2"))
        other.until(f"{SAID}.startsWith('YES YES NO -')")
    rows = [json.loads(line) for line in (project.root / LABELS).read_text().splitlines()]
    assert [row["revision"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(("key", "kept"), [("k", "NO"), ("t", "YES")])
def test_two_windows_ask_which_one_counts(
    browser: Browser, project: Project, key: str, kept: str
) -> None:
    with started(project.root) as server:
        one = browser.open(server.url)
        one.go(address(server, "/t/t1"))
        two = browser.open(address(server, "/t/t1"))
        one.press("y")
        one.saved()
        two.press("n")
        two.until("document.getElementById('conflict').open")
        two.press("Enter", "t")  # meant for a criterion, a moment too late: it decides nothing
        two.until("document.getElementById('conflict').dataset.ready")
        assert two.eval("document.getElementById('conflict-rows').innerText").split() == [
            "S1", "YES", "NO",
        ]  # fmt: skip
        two.press(key)
        two.saved()
        assert labels(project)["t1"].criteria == {"S1": kept}
        two.press("z") if key == "t" else None
        two.saved()
        wait_for(lambda: labels(project)["t1"].criteria == {"S1": "NO"})  # undo brings it back
    assert '"S1":"YES"' in (project.root / LABELS).read_text()


def test_a_window_that_was_away_is_brought_up_to_date(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        one = browser.open(server.url)
        one.go(address(server, "/t/t1"))
        two = browser.open(address(server, "/t/t1"))
        one.press("y", "n")
        one.saved()
        two.eval("dispatchEvent(new Event('focus'))")
        two.until(f"{SAID}.startsWith('YES NO')")
        two.press("b")
        two.saved()
    assert (labels(project)["t1"].criteria, labels(project)["t1"].verdict) == (
        {"S1": "YES", "S2": "NO"}, "bad",
    )  # fmt: skip


def test_undo_takes_back_one_step_after_the_other(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        page.press("y", "n", "g")
        page.press("z")
        page.press("z")
        page.saved()
        assert page.eval(CURRENT) == "S2"
        assert page.eval(SAID).startswith("YES - -")
        page.press("z", "z")
        page.until("document.getElementById('notice').textContent === 'Nothing to undo'")
        page.saved()
    assert (labels(project)["t1"].criteria, labels(project)["t1"].verdict) == ({}, None)


def test_quotes_are_found_and_marked(browser: Browser, project: Project) -> None:
    pairs = talk(40, "t1")
    project.transcript("t1", pairs)
    quote = {"exchange": 38, "quote": "step 38. Then look"}
    project.assess("t1", pairs, quotes={"S1": [quote]})
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        page.press("q")
        page.until("document.querySelector('mark.on')?.textContent === 'step 38. Then look'")
        top = page.eval("document.querySelector('mark.on').getBoundingClientRect().top")
        assert 0 < top < 800
        page.press("s")
        assert page.eval("getComputedStyle(document.querySelector('.plan')).display") == "block"


def test_sixty_injections_do_nothing_and_show_as_text(browser: Browser, project: Project) -> None:
    pairs = list(zip(INJECTIONS[::2], INJECTIONS[1::2], strict=True))
    evil = "<script>document.title='owned'</script>"
    project.transcript("t1", pairs, persona={"name": evil, "communication_style": evil})
    both = dict.fromkeys(project.rubric.criteria, evil)
    project.assess("t1", pairs, reasonings=both, quotes={"S1": [{"exchange": 1, "quote": evil}]})
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        page.press("e")
        page.write(evil)
        page.press("Escape", "m")
        page.write(evil)
        page.press("Escape", "s", "q", "u")
        page.saved()
        page.reload()
        page.until("document.getElementById('findings')?.innerText.includes('You call it')")
        assert page.eval("document.title") == "t1 \u00b7 finetune review"
        texts = page.eval("[...document.querySelectorAll('.text')].map((each) => each.textContent)")
        elements = "[...document.querySelectorAll('.text *')].map((each) => each.localName)"
        assert set(page.eval(elements)) <= {"span", "mark"}
        foreign = "script:not([src^='/static/']), iframe, object, embed, base, style, svg"
        assert page.eval(f"document.querySelectorAll(`{foreign}`).length") == 0
    wanted = [text for text in INJECTIONS if text.isprintable()]
    assert len(wanted) > 35
    assert [text for text in wanted if text not in texts] == []
    assert page.events("Page.javascriptDialogOpening", "Runtime.exceptionThrown") == []
    requests = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    ours = (address(server, "/"), "data:,", "about:blank")
    assert [url for url in requests if not url.startswith(ours)] == []


def test_no_view_is_wider_than_a_phone_or_has_small_targets(
    browser: Browser, project: Project
) -> None:
    long = [("x" * 500, "\u6c34" * 300), ("\u0645\u0631\u062d\u0628\u0627 " * 60, "a b " * 200)]
    project.transcript("t1", [*long, *talk(3)], persona={"name": "N" * 80})
    small = """[...document.querySelectorAll('button, .button, select, summary, input')]
        .filter((each) => each.offsetParent && each.getBoundingClientRect().height < 40)
        .map((each) => each.outerHTML)"""
    with started(project.root) as server:
        page = browser.open(server.url, 390, 844)
        for path in ("/", "/t/t1", "/t/t2", "/?name=1"):
            page.go(address(server, path))
            page.until("document.querySelector('.current, .line, #name')")
            assert page.eval("document.documentElement.scrollWidth") <= 390, path
            assert page.eval(small) == [], path
        page.go(address(server, "/t/t1"))
        page.eval("document.querySelector('[data-show=panel]').click()")
        assert page.eval("document.getElementById('talk').offsetParent") is None
        assert page.eval("document.documentElement.scrollWidth") <= 390
        assert page.eval(small) == []


def test_a_phone_labels_without_any_key(browser: Browser, project: Project) -> None:
    with started(project.root) as server:
        page = browser.open(server.url, 390, 844)
        page.go(address(server, "/t/t2"))
        page.until("document.querySelector('.current')")
        page.eval("document.querySelector('[data-show=panel]').click()")
        page.eval("document.getElementById('agree-rest').click()")
        page.eval("document.getElementById('undo').click()")
        assert "YES" not in page.eval(SAID)
        page.eval("document.getElementById('agree-rest').click()")
        for name in ("H1", "N2"):
            card = f"document.querySelector('[data-id={name}]')"
            page.eval(f"{card}.querySelector('.head').click()")
            page.eval(f"{card}.querySelector('[data-agree]').click()")
        page.eval("document.querySelector('[data-verdict=bad]').click()")
        page.eval("document.getElementById('on').click()")
        at(page, "t3")
    assert complete(labels(project)["t2"], project.rubric)


def test_pairs_are_compared_with_the_keyboard(browser: Browser, project: Project) -> None:
    for name in ("a1", "b1", "a2", "b2"):
        project.transcript(name, talk(3, name), folder="data/evaluation")
    path = project.root / "pairs.json"
    pairs = [[f"data/evaluation/{arm}{n}.json" for arm in "ab"] for n in (1, 2)]
    path.write_text(json.dumps(pairs))
    with started(project.root, "--ab", str(path)) as server:
        page = browser.open(server.url)
        page.until("location.pathname === '/ab/1' && document.querySelector('#help-keys dt')")
        look = "getComputedStyle(document.querySelector('#SIDE .user .text'))"
        look = f"JSON.stringify([{look}.font, {look}.color, {look}.width])"
        assert page.eval(look.replace("SIDE", "left")) == page.eval(look.replace("SIDE", "right"))
        page.press("l", "Enter")
        page.until("location.pathname === '/ab/2' && document.querySelector('#help-keys dt')")
        page.press("e")
        page.write("alike")
        page.press("Escape", "t")
        page.saved()
        assert "2 of 2 done" in page.text()
        assert "All 2 pairs are compared." in page.text()
    lines = (project.root / "data/reviews/ab.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [rows[0]["choice"], rows[-1]["choice"], rows[-1]["notes"]] == ["left", "tie", "alike"]


def test_help_lists_every_key_and_keys_can_be_switched_off(
    browser: Browser, project: Project
) -> None:
    with started(project.root) as server:
        page = browser.open(server.url)
        page.go(address(server, "/t/t1"))
        page.press("?")
        shown = page.eval("document.getElementById('help-keys').innerText")
        for key in "jkynargbuemfqszJK[]?":
            assert f"\n{key}\n" in f"\n{shown}\n".replace(" ", "\n"), key
        page.eval("document.getElementById('single-keys').click()")
        page.press("Escape", "y", "g")
        assert page.eval(SAID).startswith("- -")
        page.eval("localStorage.removeItem('review-keys-off')")
