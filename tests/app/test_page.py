"""The page as a visitor sees it: a server of its own, and Debian's Chromium."""

import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}; pip install -e ".[dev]"'),
]

ROOT = Path(__file__).parents[2]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


def wait_until(condition, seconds=20.0):
    """Return the condition's value once it is true; the page answers when it answers."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.05)
    return value


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(command, temporary, port=None):
    """Start a server and return it with its address, once it answers."""
    port = port or free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(temporary),
    }
    log = (temporary.parent / f"{port}.log").open("a")
    server = subprocess.Popen([sys.executable, *command], env=environment, cwd=ROOT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert server.poll() is None, Path(log.name).read_text()
        try:
            return urllib.request.urlopen(address, timeout=5).status == 200
        except OSError:
            return False

    wait_until(answers, 120)
    return server, address


def stop(server):
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder where Gradio would put whatever is uploaded or saved on the server."""
    return tmp_path_factory.mktemp("server") / "gradio"


@pytest.fixture(scope="module")
def address(uploads):
    server, address = serve(["-m", "lightning_fair.app"], uploads)
    yield address
    stop(server)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """A browser of its own, and what its user does."""

    def __init__(self, browser, address, width=1280, height=1000):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.goto(address)
        self.ready()

    def ready(self):
        self.page.wait_for_selector("#histogram svg")
        wait_until(self.table)

    def table(self):
        """The rows of the table that are in view."""
        cells = self.page.evaluate(
            """() => [...document.querySelectorAll('#counts [data-testid^="cell-"]')].map(
                cell => [cell.dataset.row, cell.dataset.col, cell.innerText.trim()])"""
        )
        rows = {}
        for row, _, text in sorted(cells, key=lambda cell: (int(cell[0]), int(cell[1]))):
            rows.setdefault(int(row), []).append(text)
        return [tuple(row) for row in rows.values()]

    def counts(self):
        return {int(number): int(count) for number, count, _ in self.table()}

    def batch(self):
        return [int(number) for number in self.page.input_value("#batch textarea").split(", ") if number]

    def generate(self):
        before = self.batch(), self.table()
        self.page.click("#generate")
        wait_until(lambda: (self.batch(), self.table()) != before)
        time.sleep(0.2)  # one answer, but its parts are painted one by one
        return self.batch()

    def fill(self, **inputs):
        for name, value in inputs.items():
            self.page.fill(f"#{name} input", str(value))

    def inputs(self):
        return [self.page.input_value(f"#{name} input") for name in ("n", "k", "start")]

    def says(self, pattern, where="#message"):
        """Wait until the page says it, and return the sentence."""

        def said():
            shown = self.page.locator(f"{where} .notice").all_inner_texts()
            return shown and re.search(pattern, shown[0]) and shown[0]

        return wait_until(said)

    def warned(self):
        return self.page.locator("#warning .notice").is_visible()

    def load_file(self, button, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.click(button)
        chooser.value.set_files(path)

    def load_text(self, text, button="#quick-paste"):
        self.page.get_by_role("tab", name="Pasted JSON").click()
        self.page.fill("#pasted textarea", text)
        self.page.click(button)

    def save(self, button):
        with self.page.expect_download() as download:
            self.page.click(button)
        return download.value.suggested_filename, Path(download.value.path()).read_text()

    def sort(self, order):
        self.page.click("#order input")
        self.page.get_by_role("option", name=order).click()

    def close(self):
        self.context.close()


@pytest.fixture
def visitor(chromium, address):
    visitor = Visitor(chromium, address)
    yield visitor
    assert visitor.errors == []
    # No analytics, no fonts, no scripts from elsewhere.
    assert {url.split("/")[2] for url in visitor.requests if url.startswith("http")} == {address.split("/")[2]}
    visitor.close()


@pytest.fixture
def unchanged(visitor):
    """A visitor with some counts, which the test must leave as they are, also after a reload."""
    visitor.generate()
    before = visitor.table()
    yield visitor
    assert visitor.table() == before
    visitor.page.reload()
    visitor.ready()
    assert visitor.table() == before
    assert visitor.inputs() == ["10", "3", "1"]


# -- what must work --------------------------------------------------------------------------------------


def test_generate_draws_fair_batches_and_counts_them(visitor):
    drawn = [visitor.generate() for _ in range(4)]
    assert all(len(set(batch)) == 3 for batch in drawn)
    assert sorted(itertools.chain(*drawn[:3])) == sorted(set(itertools.chain(*drawn[:3])))
    everything = list(itertools.chain(*drawn))
    assert visitor.counts() == {number: everything.count(number) for number in range(1, 11)}
    bars = visitor.page.locator("#histogram rect title").all_text_contents()
    assert bars == ["1: 8", "2: 2"]


def test_table_is_sorted_and_paged_as_a_whole(visitor):
    visitor.fill(n=1_000_000, start=-5)
    wait_until(lambda: "10,000" in visitor.page.inner_text("#page"))
    batch = visitor.generate()
    assert all(-5 <= number < 999_995 for number in batch)
    visitor.sort("Most used")
    wait_until(lambda: [row[:2] for row in visitor.table()[:3]] == [(str(n), "1") for n in sorted(batch)])
    visitor.sort("Number, down")
    wait_until(lambda: visitor.table()[0][0] == "999994")
    visitor.sort("Number, up")
    wait_until(lambda: visitor.table()[0][0] == "-5")
    visitor.page.fill("#page input", "10000")
    visitor.page.press("#page input", "Enter")
    wait_until(lambda: visitor.table()[0][0] == "999895")
    visitor.page.fill("#page input", "1")
    visitor.page.press("#page input", "Enter")
    visitor.fill(n=10, start=1)
    wait_until(lambda: visitor.table()[0][0] == "1")


def test_reload_keeps_counts_and_inputs(visitor):
    visitor.fill(n=7, k=2, start=3)
    batch = visitor.generate()
    visitor.page.reload()
    visitor.ready()
    wait_until(lambda: visitor.inputs() == ["7", "2", "3"])
    assert visitor.counts() == {number: int(number in batch) for number in range(3, 10)}


def test_app_of_the_space_starts_and_reads_what_the_browser_kept_of_a_server_before(chromium, uploads):
    server, address = serve(["-m", "lightning_fair.app"], uploads)
    visitor = Visitor(chromium, address)
    batch = visitor.generate()
    stop(server)
    server, address = serve(["examples/fair_batch_space/app.py"], uploads, int(address.rsplit(":", 1)[1]))
    try:
        batch += visitor.generate()  # in a page of the server before
        assert visitor.counts() == {number: batch.count(number) for number in range(1, 11)}
        visitor.page.goto(address)
        visitor.ready()
        wait_until(lambda: visitor.counts() == {number: batch.count(number) for number in range(1, 11)})
        visitor.generate()
    finally:
        visitor.close()
        stop(server)


@pytest.fixture
def crowded(uploads, chromium, request):
    """A visitor, and what puts their session off the server: it holds one, and here comes another visitor."""
    few = f"import lightning_fair.app.session as session, lightning_fair.app.page as page; {request.param}"
    server, address = serve(["-c", f"{few}; page._SESSIONS = 1; page.serve([])"], uploads)
    visitor = Visitor(chromium, address)
    yield visitor, lambda: Visitor(chromium, address).close()
    assert visitor.errors == []
    visitor.close()
    stop(server)


@pytest.mark.parametrize("crowded", ["pass"], indirect=True)
def test_session_that_made_room_for_another_comes_back_with_the_next_event(crowded, tmp_path):
    visitor, put_away = crowded
    visitor.fill(n=150, k=140)
    drawn = visitor.generate()
    put_away()
    visitor.page.fill("#page input", "2")
    visitor.page.press("#page input", "Enter")
    wait_until(lambda: "101" in dict.fromkeys(row[0] for row in visitor.table()))
    assert visitor.page.locator("#message .notice").count() == 0
    put_away()
    drawn += visitor.generate()
    put_away()
    counts = json.loads(visitor.save("#quick-save")[1])
    assert counts == {str(number): drawn.count(number) for number in sorted(set(drawn))}
    put_away()
    (tmp_path / "counts.json").write_text('{"4": 9}')
    visitor.load_file("#quick-file", tmp_path / "counts.json")
    visitor.says("Loaded the count of 1 number")
    put_away()
    visitor.fill(n=5, k=2)  # and at once, so that two events find no session:
    assert '"4": 9}, "N": 5, "k": 2' in visitor.save("#full-save")[1]
    assert visitor.inputs() == ["5", "2", "1"]
    put_away()
    visitor.page.click("#reset")
    visitor.says("All counts are 0 again")


@pytest.mark.parametrize("crowded", ["session._LARGEST_KEPT = 9"], indirect=True)
def test_session_that_made_room_and_was_too_many_for_its_browser_is_lost_aloud(crowded):
    visitor, put_away = crowded
    visitor.fill(n=7)
    visitor.generate()
    for click in ("#generate", "#quick-save", "#reset"):
        put_away()
        downloads = []
        visitor.page.on("download", lambda download, seen=downloads: seen.append(download))
        visitor.page.click(click)
        visitor.says("The counts were too many for your browser to keep, so all are 0 again: Full load")
        assert (visitor.counts(), visitor.batch(), downloads) == (dict.fromkeys(range(1, 8), 0), [], [])
        assert visitor.inputs() == ["7", "3", "1"]
        assert len(visitor.generate()) == 3


def test_nothing_sound_in_the_browser_brings_no_session_back():
    import gradio as gr

    from lightning_fair.app.page import _Generator
    from lightning_fair.app.session import Session

    with gr.Blocks():
        generator = _Generator()
    session, update = generator._awake({"version": 9}, "", 1, gr.Request(session_hash="a"))
    assert session is None
    assert "your browser has no copy of it: reload the page." in update[generator.message]["value"]
    session, update = generator._awake(Session().pack(), "", 1, gr.Request(session_hash="a"))
    assert (session.inputs, update) == ((10, 3, 1), {})


def test_quick_and_full_save_are_dated_files_that_load_again(visitor, tmp_path):
    visitor.fill(n=6, k=4, start=2)
    visitor.generate()
    counts = {str(number): count for number, count in visitor.counts().items() if count}
    saved = {}
    for button, kind in (("#quick-save", "counts"), ("#full-save", "full")):
        name, saved[kind] = visitor.save(button)
        assert re.fullmatch(rf"fair-rotation-{kind}-\d{{4}}-\d\d-\d\d-\d{{6}}\.json", name)
        (tmp_path / f"{kind}.json").write_text(saved[kind])
        visitor.says(f"Saved as {name}")
    assert json.loads(saved["counts"]) == counts
    assert json.loads(saved["full"]) == {"appearance_counts": counts, "N": 6, "k": 4, "start": 2}

    visitor.page.click("#reset")
    wait_until(lambda: not any(visitor.counts().values()))
    visitor.load_file("#quick-file", tmp_path / "counts.json")
    visitor.says("Loaded the counts of 4 numbers")
    assert {str(n): c for n, c in visitor.counts().items() if c} == counts

    visitor.page.click("#reset")
    visitor.fill(n=10, k=3, start=1)
    wait_until(lambda: len(visitor.counts()) == 10)
    visitor.load_file("#full-file", tmp_path / "full.json")
    visitor.says("and the inputs N = 6, k = 4, start = 2")
    assert visitor.inputs() == ["6", "4", "2"]
    assert {str(n): c for n, c in visitor.counts().items() if c} == counts


def test_pasted_json_is_saved_and_loaded(visitor):
    visitor.load_text('{"1": 3, "2": 2}')
    visitor.says("Loaded the counts of 2 numbers")
    assert visitor.counts() == {1: 3, 2: 2} | dict.fromkeys(range(3, 11), 0)
    visitor.page.click("#full-show")
    text = '{"appearance_counts": {"1": 3, "2": 2}, "N": 10, "k": 3, "start": 1}'
    wait_until(lambda: visitor.page.input_value("#pasted textarea") == text)
    visitor.page.click("#quick-show")
    wait_until(lambda: visitor.page.input_value("#pasted textarea") == '{"1": 3, "2": 2}')
    # As the published app writes it: indented, and with zeros.
    old = {"appearance_counts": {"4": 1, "5": 0}, "N": 5, "k": 2, "start": 1}
    visitor.load_text(json.dumps(old, indent=2), "#full-paste")
    visitor.says("N = 5, k = 2, start = 1")
    assert visitor.counts() == {1: 0, 2: 0, 3: 0, 4: 1, 5: 0}


def test_mismatch_is_named_after_a_change_and_clean_drops_it(visitor):
    visitor.load_text(json.dumps(dict.fromkeys(range(1, 11), 1)))
    visitor.says("Loaded the counts of 10 numbers")
    assert not visitor.warned()
    assert visitor.page.locator("#clean").is_disabled()
    visitor.fill(n=3)
    visitor.says(r"The counts of 7 numbers outside 1 to 3 are ignored: 4, 5, 6, 7, 8 and 2 more\.", "#warning")
    visitor.generate()
    assert visitor.counts() == dict.fromkeys(range(1, 4), 2) | dict.fromkeys(range(4, 11), 1)
    assert visitor.table()[-1] == ("10", "1", "out of range")
    assert visitor.warned()
    visitor.page.click("#clean")
    visitor.says("Dropped the counts of 7 numbers out of range")
    assert not visitor.warned()
    assert visitor.counts() == {1: 2, 2: 2, 3: 2}


def test_mismatch_is_named_after_a_load(visitor):
    visitor.load_text('{"5": 1, "70": 2}')
    visitor.says(r"The count of 1 number outside 1 to 10 is ignored: 70\.", "#warning")
    visitor.fill(start=65)
    visitor.says(r"outside 65 to 74 is ignored: 5\.", "#warning")


@pytest.mark.parametrize("button", ["#generate", "#full-save", "#full-show"])
def test_buttons_that_need_the_inputs_take_them_over_first_and_refuse_bad_ones(visitor, button):
    visitor.load_text('{"4": 1, "50": 1}')
    visitor.says("outside 1 to 10 is ignored: 50", "#warning")
    visitor.page.get_by_role("tab", name="Pasted JSON" if "show" in button else "File").click()
    before = visitor.table()
    downloads = []
    visitor.page.on("download", lambda download: downloads.append(download))
    visitor.fill(k=11)
    visitor.says("^k must be at most N")
    visitor.fill(n=5)  # the sentence is another one only after the click
    visitor.says("got k = 11 for N = 5")
    visitor.page.click(button)
    time.sleep(0.5)
    visitor.says("got k = 11 for N = 5")
    assert (visitor.table(), downloads) == (before, [])
    assert visitor.page.locator("#pasted textarea").input_value() == '{"4": 1, "50": 1}'


BLANK = r"k must be a whole number, and its field is empty\.$"


def test_buttons_that_need_no_inputs_go_on_with_those_in_force_and_say_what_is_wrong(visitor, tmp_path):
    visitor.load_text('{"4": 1, "50": 1}')
    visitor.says("outside 1 to 10 is ignored: 50", "#warning")
    visitor.fill(k="")
    visitor.says(f"^{BLANK}")

    def warns(said):
        visitor.says(f"^{said} {BLANK}")
        assert visitor.page.locator("#message .notice.warn").count() == 1
        assert visitor.inputs() == ["10", "", "1"]

    visitor.page.click("#quick-show")
    warns(r"Copy the JSON below\.")
    assert visitor.page.input_value("#pasted textarea") == '{"4": 1, "50": 1}'
    visitor.page.get_by_role("tab", name="File").click()
    assert json.loads(visitor.save("#quick-save")[1]) == {"4": 1, "50": 1}
    warns(r"Saved as \S+\.")
    visitor.page.click("#clean")
    warns(r"Dropped the count of 1 number out of range\.")
    wait_until(lambda: visitor.counts() == {number: int(number == 4) for number in range(1, 11)})
    (tmp_path / "counts.json").write_text('{"3": 2}')
    visitor.load_file("#quick-file", tmp_path / "counts.json")
    warns(r"Loaded the count of 1 number\.")
    visitor.load_text('{"2": 5, "3": 5}')
    warns(r"Loaded the counts of 2 numbers\.")
    wait_until(lambda: visitor.counts()[2] == 5)
    visitor.load_text("[]")
    visitor.says(rf"^The JSON must be an object .* {BLANK}")
    assert visitor.page.locator("#message .notice.bad").count() == 1
    visitor.page.click("#reset")
    warns(r"All counts are 0 again\.")
    visitor.load_text('{"appearance_counts": {"1": 1}, "N": 4, "k": 2, "start": 1}', "#full-paste")
    visitor.says(r"and the inputs N = 4, k = 2, start = 1\.$")  # which brings inputs of its own
    assert visitor.inputs() == ["4", "2", "1"]


def test_click_that_is_quicker_than_the_typing_before_it_has_the_new_inputs(visitor):
    held = []
    visitor.page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    visitor.fill(n=60)
    wait_until(lambda: visitor.page.wait_for_timeout(50) or held)
    assert '"N": 60' in visitor.save("#full-save")[1]
    assert "60" in visitor.inputs()
    held[0].continue_()


def test_counts_too_many_for_the_browser_never_bring_back_older_ones(visitor, tmp_path):
    visitor.fill(n=1_000_000)
    wait_until(lambda: "10,000" in visitor.page.inner_text("#page"))
    visitor.generate()  # what must not come back
    draw = random.Random(0)
    (tmp_path / "many.json").write_text(json.dumps({number: draw.randrange(1, 10**9) for number in range(1, 700_001)}))
    visitor.load_file("#quick-file", tmp_path / "many.json")
    visitor.page.wait_for_selector("#histogram [data-testid='status-tracker']:visible")
    notice = visitor.says("Loaded the counts of 700,000 numbers. These counts are too many for your browser to keep")
    assert "use Full save" in notice
    assert visitor.page.locator("#message .notice.warn").count() == 1
    visitor.page.reload()
    visitor.ready()
    visitor.says("The counts were too many for your browser to keep, so all are 0 again: Full load brings back")
    assert visitor.inputs() == ["1000000", "3", "1"]
    assert visitor.page.locator("#histogram rect title").all_text_contents() == ["0: 1,000,000"]
    visitor.page.reload()
    visitor.ready()
    assert visitor.page.locator("#message .notice").count() == 0


def test_limits_are_on_the_page(visitor):
    text = visitor.page.inner_text("body")
    for limit in (
        "range size, at most 1,000,000",
        "batch size, at most 10,000",
        "Limits: 1,000,000 numbers with a count, 1,000,000,000 for a count, 32 MB for a file.",
        "sorts the whole table",
        "of two tabs, those of the one that changed last",
    ):
        assert limit in text


def test_port_that_is_taken_ends_in_one_sentence(address):
    port = address.rsplit(":", 1)[1]
    for taken in (port, "99999"):
        run = [sys.executable, "-m", "lightning_fair.app", "--port", taken]
        ended = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert (ended.returncode, ended.stdout) == (1, "")
        sentence = f"The page cannot be served at http://localhost:{taken}: choose a free one with --port"
        assert re.fullmatch(rf"{sentence}, or another --host\.\n", ended.stderr)


def test_two_visitors_never_see_each_others_counts(visitor, chromium, address):
    other = Visitor(chromium, address)
    mine, theirs = visitor.generate(), other.generate()
    other.fill(n=4)
    theirs += other.generate()
    assert visitor.counts() == {number: mine.count(number) for number in range(1, 11)}
    assert {n: c for n, c in other.counts().items() if c} == {n: theirs.count(n) for n in theirs}
    for one in (visitor, other):
        one.page.reload()
        one.ready()
    wait_until(lambda: other.inputs()[0] == "4")
    assert visitor.counts() == {number: mine.count(number) for number in range(1, 11)}
    assert visitor.inputs()[0] == "10"
    other.close()


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"k": 11}, r"^k must be at most N, got k = 11 for N = 10: a batch never holds a number twice\.$"),
        ({"n": 0}, r"^N must be at least 1, got 0\.$"),
        ({"n": -3}, r"^N must be at least 1, got -3\.$"),
        ({"k": 0}, r"^k must be at least 1, got 0\.$"),
        ({"n": 10.5}, r"^N must be a whole number, got 10\.5\.$"),
        ({"start": 0.1}, r"^start must be a whole number, got 0\.1\.$"),
        ({"k": ""}, r"^k must be a whole number, and its field is empty\.$"),
        ({"n": 1_000_001}, r"^N must be at most 1,000,000 on this page, got 1000001\.$"),
        ({"n": "9" * 26}, r"^N must be at most 1,000,000 on this page"),
        ({"n": 1_000_000, "k": 10_001}, r"^k must be at most 10,000 on this page, got 10001\.$"),
        ({"start": 10**17}, r"^start to start \+ N - 1 must lie within"),
    ],
)
def test_bad_fields_get_a_sentence_and_change_nothing(visitor, inputs, sentence):
    visitor.generate()
    visitor.fill(**{name: value for name, value in inputs.items() if name == "n" and len(inputs) > 1})
    time.sleep(0.5)
    before, batch = visitor.table(), visitor.batch()
    visitor.fill(**inputs)
    visitor.says(sentence)
    visitor.page.click("#generate")
    visitor.says(sentence)
    time.sleep(0.3)
    assert (visitor.table(), visitor.batch()) == (before, batch)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"^There is nothing to load"),
        ("hello", r"^The text is not JSON"),
        ("[1, 2]", r"^The JSON must be an object"),
        ('{"a": 1}', r"^The keys must be integers"),
        ('{"1": -1}', r"^Counts must not be negative, got -1"),
        ('{"1": 1.5}', r"^The count of number 1 must be a whole number, got 1\.5"),
        ('{"1": 1000000001}', r"^Counts must be at most 1,000,000,000"),
        ('{"1": %s}' % ("9" * 5000), r"an integer of 5000 digits"),
        ("[" * 50_000, r"nested too deeply"),
        ('{"appearance_counts": {}, "N": 2, "k": 3, "start": 1}', r"^k must be at most N"),
    ],
)
def test_bad_json_gets_a_sentence_and_changes_nothing(unchanged, text, sentence):
    unchanged.load_text(text, "#full-paste")
    unchanged.says(sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b" " * (50 * 2**20), r"^A file must have at most 32 MB, got 50 MB\.$"),
        (bytes(range(256)) * 20, r"^The file is not text \(UTF-8\)"),
        (b"", r"^There is nothing to load"),
        (b'{"1": "x"}', r"must be a whole number, got 'x'"),
    ],
    ids=["50 MB", "no text", "empty", "wrong"],
)
def test_bad_files_get_a_sentence_and_change_nothing(unchanged, tmp_path, content, sentence):
    path = tmp_path / "<img src=x onerror=alert(1)>.json"
    path.write_bytes(content)
    for button in ("#quick-file", "#full-file"):
        unchanged.load_file(button, path)
        unchanged.says(sentence)
    assert "onerror" not in unchanged.page.content()


def test_nothing_pasted_becomes_html(unchanged):
    evil = "<img src=x onerror=alert(1)>"
    for text in (json.dumps({evil: 1}), json.dumps({"1": evil}), evil):
        unchanged.load_text(text)
        unchanged.says("keys must be integers|must be a whole number|not JSON")
        assert unchanged.page.locator('img[src="x"]').count() == 0
    unchanged.load_text(json.dumps({evil: 1}))
    assert "<img src=x" in unchanged.says("keys must be integers")


def test_nothing_is_written_on_the_server(visitor, address, uploads, tmp_path):
    (tmp_path / "counts.json").write_text('{"1": 1}')
    visitor.load_file("#quick-file", tmp_path / "counts.json")
    visitor.says("Loaded the count of 1 number")
    visitor.save("#full-save")
    for path, size in itertools.product(("upload", "process_recording", "component_server"), (0, 1, 5000)):
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        request = urllib.request.Request(
            f"{address}/gradio_api/{path}",
            part + b"y" * size + b"\r\n--x--\r\n",
            {"Content-Type": "Multipart/form-data; boundary=x"},
        )
        with pytest.raises(urllib.error.HTTPError, match="415"):
            urllib.request.urlopen(request, timeout=20)
    assert not any(path.is_file() for path in uploads.rglob("*"))


# -- the feedback ------------------------------------------------------------------------------------------


def test_feedback_answers_sliders_and_turns_within_a_second(visitor):
    page = visitor.page
    page.get_by_role("tab", name="Feedback").click()
    visitor.says("Class 3 is the rarest now", "#feedback-message")
    assert page.locator("#mix polyline").count() == 8  # four classes, and each without feedback
    assert page.locator("#weights polyline").count() == 4
    begin = time.monotonic()
    page.click("#turn")
    visitor.says("Class 0 is the rarest now", "#feedback-message")
    turned = time.monotonic() - begin
    assert page.locator("#mix").get_by_text("turned over").count() == 1
    before = page.inner_html("#weights")
    begin = time.monotonic()
    page.get_by_role("spinbutton", name="Alpha").fill("0")
    visitor.says(r"(\d+)% of what is trained on", "#feedback-message")
    wait_until(lambda: page.inner_html("#weights") != before)
    slid = time.monotonic() - begin
    page.get_by_role("spinbutton", name="Alpha").fill("40")
    visitor.says("^Alpha 40 is too high for horizon 16 and loss emphasis 0, the class mix", "#feedback-message")
    assert page.locator("#mix svg, #weights svg").count() == 0  # none that belongs to other settings
    # 0.02 to 0.15 s measured, on two cores that others used too.
    assert max(turned, slid) < 1.0


# -- looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "name"), [(390, 844, "app-phone"), (1200, 900, "app")])
def test_page_fits_its_width(chromium, address, tmp_path, width, height, name):
    """Leave screenshots in the folder ``SCREENSHOTS``, if it is set; that is how assets/app.png is made."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    visitor = Visitor(chromium, address, width, height)
    page = visitor.page
    visitor.fill(n=1_000_000)  # the largest there can be
    assert page.evaluate("(field => field.scrollWidth <= field.clientWidth)(document.querySelector('#n input'))")
    visitor.fill(n=10, k=4)
    visitor.load_text(json.dumps({1: 3, 2: 2, 3: 2, 4: 1, 5: 2, 6: 1, 7: 2, 8: 4, 9: 2, 10: 1, 11: 2, 12: 3}))
    visitor.says("Loaded the counts of 12 numbers")
    page.get_by_role("tab", name="File").click()
    visitor.generate()
    visitor.says("outside 1 to 10", "#warning")
    visitor.sort("Number, down")  # so that the numbers warned of are in sight
    wait_until(lambda: visitor.table()[:2] == [("12", "3", "out of range"), ("11", "2", "out of range")])
    for tab, suffix in (("Generator", ""), ("Feedback", "-feedback")):
        page.get_by_role("tab", name=tab).click()
        if suffix:
            page.click("#turn")
            visitor.says("Class 0 is the rarest now", "#feedback-message")
            heads = [head.bounding_box() for head in page.locator(".sliders .head").all()]
            numbers = [number.bounding_box() for number in page.locator(".sliders .head input").all()]
            assert len({number["y"] - head["y"] for head, number in zip(heads, numbers, strict=True)}) == 1
        page.mouse.move(0, 0)
        time.sleep(0.5)  # colours fade
        page.screenshot(path=folder / f"{name}{suffix}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.close()


def test_memory_is_bounded_as_the_space_says():
    from lightning_fair.app.page import build, launch_options

    text = " ".join((ROOT / "examples" / "fair_batch_space" / "README.md").read_text().split())
    sessions = launch_options()["state_session_capacity"]
    assert f"keeps the {sessions} sessions used last" in text
    assert f"up to 0.45 GB, so all take at most {sessions * 0.45} GB" in text
    texts = [event for event in build().fns.values() if event.concurrency_id == "json"]
    assert [event.concurrency_limit for event in texts] == [1] * 8  # two loads by file and two by text, as many saves


def test_space_names_what_it_needs():
    space = ROOT / "examples" / "fair_batch_space"
    assert sorted(path.name for path in space.iterdir() if path.is_file()) == [
        "README.md",
        "app.py",
        "requirements.txt",
    ]
    front = dict(re.findall(r"^(\w+): (.+)$", (space / "README.md").read_text().split("---")[1], re.MULTILINE))
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", front["sdk_version"])
    text = (space / "README.md").read_text()
    assert all(limit in text for limit in ("1,000,000", "10,000", "1,000,000,000", "32 MB"))
    assert 'echo "lightning-fair[app] @ git+https://' in text  # until there is a release
    assert "lightning-fair[app]" in (space / "requirements.txt").read_text().split("\n")
