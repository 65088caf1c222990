"""The page in a browser: a server of its own, and Chromium."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightning_fair.app.session import LARGEST_K, MAX_COPIED
from lightning_fair.rotation.serialization import LARGEST_COUNT, LARGEST_NUMBER, dump

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}; pip install -e ".[dev]"'),
]
if not MISSING:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)

ROOT = Path(__file__).parents[2]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
STORAGE_KEY = "lightning-fair-rotation"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serve(command, folder, port=None):
    """Start a server that keeps its files in ``folder``; yield its address when it answers."""
    port = port or free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(folder),
    }
    log = folder.with_suffix(".log")
    with log.open("a") as errors:
        server = subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert "Fair batches: " in server.stdout.readline(), log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder for the server's files: uploads, and files to download."""
    return tmp_path_factory.mktemp("server") / "gradio"


@pytest.fixture(scope="module")
def address(folder):
    with serve(["-m", "lightning_fair.app"], folder) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """A browser profile of its own with the page, and the actions of its user.

    Each action that changes the counts returns when the browser has its new copy of them.
    """

    def __init__(self, browser, address, width=1280, height=1000, context=None):
        self.context = context or browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests, self.errors, self.downloads = [], [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("download", lambda download: self.downloads.append(download))
        self.page.goto(address)
        expect(self.cell(0, 0)).to_be_visible()

    def reload(self):
        self.page.reload()
        expect(self.cell(0, 0)).to_be_visible()

    @contextmanager
    def change(self):
        """Wait until the browser has another copy of the counts and inputs than before."""
        read = f"localStorage.getItem('{STORAGE_KEY}')"
        before = self.page.evaluate(read)
        yield
        self.page.wait_for_function(f"before => {read} !== before", arg=before)

    def locator(self, selector):
        return self.page.locator(selector)

    def cell(self, row, column):
        return self.locator(f'#counts [data-testid="cell-{row}-{column}"]')

    def expect_rows(self, rows):
        """Expect that the table begins with these rows of number, count and remark."""
        for row, values in enumerate(rows):
            for column, value in enumerate(values):
                expect(self.cell(row, column)).to_have_text(str(value))

    def expect_counts(self, counts):
        """Expect that the table consists of these counts by number, in order and without remarks."""
        self.expect_rows((number, count, "") for number, count in counts.items())
        expect(self.locator("#counts").get_by_text(f"{len(counts)} of {len(counts)} numbers")).to_be_visible()

    def expect_bars(self, bars):
        """Expect these bars of the histogram: how many numbers have each count."""
        for count, numbers in bars.items():
            bar = self.locator(".histogram:visible [aria-roledescription=bar]").and_(
                self.page.locator(f'[aria-label="count: {count}; numbers with that count: {numbers}"]')
            )
            expect(bar).to_have_count(1)
        expect(self.locator(".histogram:visible [aria-roledescription=bar]")).to_have_count(len(bars))

    def expect_batch(self, batch):
        expect(self.locator("#batch textarea")).to_have_value(", ".join(map(str, batch)))

    def expect_message(self, pattern, selector="#message"):
        expect(self.locator(f"{selector} .notice")).to_have_text(re.compile(pattern))

    def expect_inputs(self, n, k, start):
        for name, value in (("n", n), ("k", k), ("start", start)):
            expect(self.locator(f"#{name} input")).to_have_value(str(value))

    def generate(self, field=None):
        """Draw a batch that differs from the one before, by Enter in the field if one is named, and return it."""
        batch = self.locator("#batch textarea")
        before = batch.input_value()
        with self.change():
            self.page.press(f"#{field} input", "Enter") if field else self.page.click("#generate")
        expect(batch).not_to_have_value(before)
        return [int(number) for number in batch.input_value().split(", ")]

    def fill(self, **inputs):
        for name, value in inputs.items():
            self.page.fill(f"#{name} input", str(value))

    def enter(self, **inputs):
        """Fill in inputs that differ from those in force and are accepted one by one."""
        for name, value in inputs.items():
            with self.change():
                self.fill(**{name: value})

    def reset(self, seed=""):
        self.page.fill("#seed textarea", seed)
        self.page.click("#reset")

    def load_file(self, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#load")
        chooser.value.set_files(path)

    def load_text(self, text):
        if not self.locator("#text").is_visible():
            self.page.get_by_role("button", name="As text").click()
        self.page.fill("#text textarea", text)
        self.page.click("#load-text")

    def save(self):
        """Save a file, and return its name and text."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        return download.value.suggested_filename, Path(download.value.path()).read_text()

    def close(self):
        self.context.close()


@pytest.fixture
def visitor(chromium, address):
    visitor = Visitor(chromium, address)
    yield visitor
    assert visitor.errors == []
    # No analytics, fonts or scripts from other hosts.
    assert {url.split("/")[2] for url in visitor.requests if url.startswith("http")} == {address.split("/")[2]}
    visitor.close()


def count_batches(batches, numbers=range(1, 11)):
    drawn = list(itertools.chain(*batches))
    return {number: drawn.count(number) for number in numbers}


def test_batches_are_fair_and_counted(visitor):
    batches = [visitor.generate(field) for field in (None, "n", "k", "start")]
    assert all(len(set(batch)) == 3 for batch in batches)
    assert max(count_batches(batches[:3]).values()) == 1
    visitor.expect_counts(count_batches(batches))
    visitor.expect_bars({1: 8, 2: 2})


def test_table_of_a_million_numbers(visitor):
    """The table is ordered as a whole, and shows the first thousand rows."""
    visitor.enter(n=1_000_000, start=-5)
    batch = visitor.generate()
    assert all(-5 <= number < 999_995 for number in batch)
    visitor.expect_rows([(-5, int(-5 in batch), "")])
    expect(visitor.locator("#counts").get_by_text("1,000 of 1,000,000 numbers")).to_be_visible()
    visitor.page.get_by_label("Most used").check()
    visitor.expect_rows([(number, 1, "") for number in sorted(batch)])
    visitor.page.get_by_label("Least used").check()
    visitor.expect_rows([(min(set(range(-5, 5)) - set(batch)), 0, "")])


def test_reload_keeps_counts(visitor):
    visitor.enter(n=7, k=2, start=3)
    batch = visitor.generate()
    visitor.reload()
    visitor.expect_inputs(7, 2, 3)
    visitor.expect_counts(count_batches([batch], range(3, 10)))
    visitor.expect_batch(batch)


def test_batch_is_shown_with_its_counts(visitor, chromium, address):
    """Each tab shows the batch of its own counts, and after a reload both of the tab that changed last."""
    batches = [visitor.generate()]
    other = Visitor(chromium, address, context=visitor.context)
    other.expect_batch(batches[0])
    batches.append(other.generate())
    visitor.expect_batch(batches[0])
    visitor.expect_counts(count_batches(batches[:1]))
    visitor.reload()
    visitor.expect_batch(batches[1])
    visitor.expect_counts(count_batches(batches))
    for change in (
        lambda: visitor.enter(n=4),
        lambda: visitor.page.click("#clean"),
        lambda: visitor.load_text('{"1": 3}'),
    ):
        change()
        visitor.expect_batch([])
        visitor.generate()


def test_reset_is_undone(visitor):
    visitor.enter(n=7, k=2)
    undo, batch = visitor.locator("#undo"), visitor.generate()
    expect(undo).to_be_disabled()
    for seed in ("", "7"):  # the second reset is undone, not the first
        visitor.reset(seed)
        visitor.expect_message("All counts are 0.* Undo reset")
        visitor.expect_batch([])
        visitor.enter(k=1)
        if not seed:
            batch = visitor.generate()
    visitor.enter(n=5)
    visitor.generate()
    undo.click()
    visitor.expect_message("The counts from before and after the reset are exchanged")
    expect(undo).to_be_enabled()
    for _ in range(2):
        visitor.expect_inputs(7, 1, 1)
        visitor.expect_counts(count_batches([batch], range(1, 8)))
        visitor.expect_batch(batch)
        visitor.reload()


def test_ticks_of_the_histogram_are_whole(visitor):
    for n in (1, 2, 3, 4, 5, 10, 30):
        visitor.enter(k=1)
        visitor.enter(n=n + 1)
        visitor.expect_bars({0: n + 1})
        ticks = (
            visitor.locator(".histogram:visible .role-axis").last.locator(".role-axis-label text").all_text_contents()
        )
        assert len(ticks) > 1
        assert all(tick.isdigit() for tick in ticks)


def test_counts_outlive_the_server(chromium, folder):
    """A new server, here the example for a Space, reads the copy that the browser kept of the one before."""
    port = free_port()
    with serve(["-m", "lightning_fair.app"], folder, port) as address:
        visitor = Visitor(chromium, address)
        batches = [visitor.generate()]
    with serve(["-m", "lightning_fair.app"], folder, port):
        visitor.page.click("#generate")
        visitor.expect_message("The server no longer has your session: reload the page")
        visitor.expect_batch(batches[0])
        visitor.expect_counts(count_batches(batches))
        visitor.page.goto("about:blank")
    with serve(["examples/fair_batch_space/app.py"], folder, port) as address:
        visitor.page.goto(address)
        visitor.expect_counts(count_batches(batches))
        visitor.expect_batch(batches[0])
        batches.append(visitor.generate())
        visitor.expect_counts(count_batches(batches))
        visitor.close()


def test_evicted_session_is_reloaded(chromium, folder):
    """A server that holds one session drops it for the next visitor; nothing is drawn or saved without it."""
    code = "from lightning_fair.app import page; page._SESSIONS = 1; page.main([])"
    with serve(["-c", code], folder) as address:
        visitor = Visitor(chromium, address)
        batch = visitor.generate()
        Visitor(chromium, address).close()
        for button in ("#generate", "#save", "#reset"):
            visitor.page.click(button)
            visitor.expect_message("The server no longer has your session: reload the page")
        assert visitor.downloads == []
        visitor.reload()
        visitor.expect_counts(count_batches([batch]))
        visitor.close()


def test_browser_keeps_the_stated_counts(visitor, tmp_path):
    """As many and as long counts as the browser's copy may hold survive a reload; with one more, none does."""
    numbers = range(-LARGEST_NUMBER, -LARGEST_NUMBER + MAX_COPIED)
    counts = dict.fromkeys(numbers, LARGEST_COUNT)
    fits, too_many = tmp_path / "fits.json", tmp_path / "too_many.json"
    fits.write_text(dump(counts))
    too_many.write_text(dump(counts | {1: 1}))
    visitor.load_file(fits)
    visitor.expect_message("Counts loaded: 100,000")
    with visitor.change():
        visitor.page.click("#generate")
    expect(visitor.locator("#warning .notice")).to_contain_text("at most 100,000 counts over a reload: press Save")
    visitor.enter(start=-LARGEST_NUMBER, n=MAX_COPIED, k=LARGEST_K)
    visitor.load_file(fits)
    visitor.expect_message("Counts loaded: 100,000")
    batch = visitor.generate()
    assert len(batch) == LARGEST_K
    visitor.reload()
    visitor.expect_batch(batch)
    visitor.expect_rows([(-LARGEST_NUMBER, LARGEST_COUNT, "")])
    visitor.enter(k=3, n=10, start=1)
    visitor.enter(n=7)
    with visitor.change():
        visitor.load_file(too_many)
    visitor.expect_message("Counts loaded: 100,001")
    visitor.reload()
    visitor.expect_message("The counts were too many for your browser to keep, so all are 0")
    visitor.expect_inputs(7, 3, 1)
    visitor.expect_counts(dict.fromkeys(range(1, 8), 0))


def test_saved_files_load(visitor, tmp_path):
    visitor.enter(n=6, k=4, start=2)
    batch = visitor.generate()
    counts = {str(number): 1 for number in sorted(batch)}
    texts = {}
    for kind in ("full", "counts"):
        name, texts[kind] = visitor.save()
        assert re.fullmatch(rf"fair-rotation-{kind}-\d{{4}}-\d\d-\d\d-\d{{6}}\.json", name)
        visitor.expect_message(f"Saved as {name}")
        (tmp_path / f"{kind}.json").write_text(texts[kind])
        visitor.page.get_by_label("Counts only").check()
    assert json.loads(texts["counts"]) == counts
    assert json.loads(texts["full"]) == {"appearance_counts": counts, "N": 6, "k": 4, "start": 2}

    expected = count_batches([batch], range(2, 8))
    for kind in ("counts", "full"):
        visitor.reset()
        visitor.expect_counts(dict.fromkeys(range(2, 8), 0))
        visitor.load_file(tmp_path / f"{kind}.json")
        visitor.expect_message(r"Counts loaded: 4\.$")
        visitor.expect_counts(expected)
    visitor.page.get_by_label("Counts only").uncheck()
    visitor.enter(n=10, start=1)
    visitor.load_file(tmp_path / "full.json")
    visitor.expect_message("N = 6, k = 4 and start = 2 are loaded")
    visitor.expect_inputs(6, 4, 2)
    visitor.expect_counts(expected)


def test_text_is_loaded_and_shown(visitor):
    visitor.load_text('{"1": 3, "2": 2}')
    visitor.expect_message("Counts loaded: 2")
    visitor.expect_counts({1: 3, 2: 2} | dict.fromkeys(range(3, 11), 0))
    visitor.expect_bars({0: 8, 1: 0, 2: 1, 3: 1})
    text = visitor.locator("#text textarea")
    visitor.page.click("#show-text")
    expect(text).to_have_value('{"appearance_counts": {"1": 3, "2": 2}, "N": 10, "k": 3, "start": 1}')
    visitor.page.get_by_label("Counts only").check()
    visitor.page.click("#show-text")
    expect(text).to_have_value('{"1": 3, "2": 2}')
    visitor.load_text(json.dumps(dict.fromkeys(range(1, 13), 10**9)))
    visitor.expect_bars({"1,000,000,000": 10})


def test_counts_out_of_range_are_cleaned(visitor):
    visitor.load_text(json.dumps(dict.fromkeys(range(1, 11), 1)))
    visitor.expect_message("Counts loaded: 10")
    expect(visitor.locator("#clean")).to_be_disabled()
    visitor.enter(n=3)
    visitor.expect_message(r"outside 1 to 3 are ignored: 4, 5, 6, 7, 8 and 2 more\. Press Clean counts", "#warning")
    visitor.generate()
    visitor.expect_rows([(1, 2, ""), (2, 2, ""), (3, 2, ""), (4, 1, "out of range")])
    visitor.page.click("#clean")
    visitor.expect_message("Dropped the counts out of range: 7")
    expect(visitor.locator("#warning .notice")).to_be_hidden()
    visitor.expect_counts({1: 2, 2: 2, 3: 2})


def test_reset_uses_the_seed(visitor):
    batches = []
    for seed in ("7", "7", "8"):
        visitor.reset(seed)
        visitor.expect_message("All counts are 0")
        expect(visitor.locator("#batch textarea")).to_have_value("")
        batches.append([visitor.generate() for _ in range(3)])
    assert batches[0] == batches[1] != batches[2]
    visitor.reset("<b>")
    visitor.expect_message("seed must be a whole number of at least 0, got '<b>'")
    visitor.expect_counts(count_batches(batches[2]))


def test_two_visitors_have_separate_counts(visitor, chromium, address):
    other = Visitor(chromium, address)
    first, second = [visitor.generate()], [other.generate()]
    other.enter(n=4)
    for one in (visitor, other):
        one.reload()
    visitor.expect_counts(count_batches(first))
    visitor.expect_inputs(10, 3, 1)
    other.expect_inputs(4, 3, 1)
    other.expect_rows([(number, count, "") for number, count in count_batches(second, range(1, 5)).items()])
    other.close()


def test_click_before_typing_arrives(visitor):
    """A click that overtakes the event of the typing before it uses the new inputs."""
    held = []
    visitor.page.route("**/queue/join*", lambda route: route.continue_() if held else held.append(route))
    with visitor.page.expect_request("**/queue/join*"):
        visitor.fill(n=60)
    assert '"N": 60' in visitor.save()[1]
    held[0].continue_()


BAD_FIELDS = {
    "k": [
        (11, "k must lie in [1, N], got k = 11 for N = 10: no number occurs twice in a batch."),
        (0, "k must lie in [1, N], got k = 0 for N = 10: no number occurs twice in a batch."),
        ("", "k must be a whole number, got an empty field."),
        (10_001, "k must be at most 10,000 on this page, got 10001."),
    ],
    "n": [
        (0, "N must lie in [1, 10,000,000], got 0: a count is held for every number."),
        (10.5, "N must be a whole number, got 10.5."),
        (1_000_001, "N must be at most 1,000,000 on this page, got 1000001."),
        ("9" * 26, "N must be at most 1,000,000 on this page"),
    ],
    "start": [
        (0.1, "start must be a whole number, got 0.1."),
        (10**17, "start to start + N - 1 must lie within"),
    ],
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields_get_a_sentence(visitor, name):
    """A bad field is refused when it is typed, and at each button that uses it; nothing is drawn or saved.

    The order of the table hides the sentence before each click: an answer that is still under way could otherwise
    bring the sentence of a field back after the one of the next field.
    """
    batch = visitor.generate()
    orders = itertools.cycle(visitor.page.get_by_label(order) for order in ("Most used", "Least used"))
    for value, sentence in BAD_FIELDS[name]:
        visitor.fill(**{name: value})
        visitor.expect_message(re.escape(sentence))
        for button in ("#generate", "#save", "#reset"):
            next(orders).check()
            expect(visitor.locator("#message .notice")).to_be_hidden()
            visitor.page.click(button)
            visitor.expect_message(re.escape(sentence))
    visitor.page.get_by_role("radio", name="Number").check()
    visitor.expect_counts(count_batches([batch]))
    expect(visitor.locator("#batch textarea")).to_have_value(", ".join(map(str, batch)))
    assert visitor.downloads == []
    visitor.reload()
    visitor.expect_inputs(10, 3, 1)
    visitor.expect_counts(count_batches([batch]))


EVIL = "<img src=x onerror=alert(1)>"
BAD_TEXTS = [
    ("", "not JSON that can be loaded"),
    ("hello", "not JSON that can be loaded"),
    ("[1, 2]", "The JSON must be an object"),
    ('{"a": 1}', "The keys must be integers"),
    ('{"1": -1}', r"got -1 for number 1"),
    ('{"1": %s}' % ("9" * 5000), "not JSON that can be loaded"),
    ("[" * 50_000, "not JSON that can be loaded"),
    ('{"appearance_counts": {}, "N": 2, "k": 3, "start": 1}', r"k must lie in \[1, N\]"),
    (json.dumps({EVIL: 1}), "keys must be integers of at most 16 digits, got '<img"),
    (json.dumps({"1": EVIL}), "The count of number 1 must be a whole number, got '<img"),
    (EVIL, "not JSON that can be loaded"),
]


def test_bad_texts_get_a_sentence(visitor):
    batch = visitor.generate()
    for place, (text, sentence) in enumerate(BAD_TEXTS):
        visitor.load_text(text)
        visitor.expect_message(sentence)
        expect(visitor.locator('img[src="x"]')).to_have_count(0)
        with visitor.change():  # a good text, so that the next sentence is not the last one
            visitor.load_text(json.dumps(dict.fromkeys(batch, 1) | {99: 1 + place}))
    visitor.page.click("#clean")
    visitor.expect_counts(count_batches([batch]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (bytes(range(256)) * 20, "The file must be text in UTF-8"),
        (b"", "not JSON that can be loaded"),
        (b'{"1": "x"}', "must be a whole number, got 'x'"),
    ],
    ids=["binary", "empty", "wrong"],
)
def test_bad_files_get_a_sentence(visitor, tmp_path, content, sentence):
    """Files with HTML in their names are refused with a sentence, which does not contain the name."""
    batch = visitor.generate()
    path = tmp_path / f"{EVIL}.json"
    path.write_bytes(content)
    visitor.load_file(path)
    visitor.expect_message(sentence)
    visitor.expect_counts(count_batches([batch]))
    assert "onerror" not in visitor.page.content()


def test_huge_file_gets_a_sentence(visitor, tmp_path):
    batch = visitor.generate()
    path = tmp_path / f"{EVIL}.json"
    path.write_bytes(b" " * (50 * 2**20))
    visitor.load_file(path)
    expect(visitor.page.get_by_text("A file must have at most 32 MB.").first).to_be_visible()
    visitor.expect_counts(count_batches([batch]))
    assert "onerror" not in visitor.page.content()


def test_uploads_are_deleted(visitor, address, folder, tmp_path):
    """A file is deleted from the server when it has been read, and too large ones never reach its disk."""
    (tmp_path / "uploaded.json").write_text('{"1": 1}')
    visitor.load_file(tmp_path / "uploaded.json")
    visitor.expect_message("Counts loaded: 1")
    assert not list(folder.rglob("*uploaded*"))
    for path in ("upload", "process_recording", "component_server"):
        request = urllib.request.Request(
            f"{address}/gradio_api/{path}",
            b"--x\r\n",
            {"Content-Type": "Multipart/form-data; boundary=x", "Content-Length": str(40 * 2**20)},
        )
        with pytest.raises(urllib.error.HTTPError, match="413"):
            urllib.request.urlopen(request, timeout=60)


def test_taken_port_ends_in_a_sentence(address):
    for port in (address.rsplit(":", 1)[1], "99999"):
        command = [sys.executable, "-m", "lightning_fair.app", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert (ended.returncode, ended.stdout) == (1, "")
        sentence = f"The page cannot be served at http://localhost:{port}: choose a free one with --port"
        assert ended.stderr == f"{sentence}, or another --host.\n"


def test_feedback_follows_the_sliders(visitor):
    page = visitor.page
    page.get_by_role("tab", name="Feedback").click()
    visitor.expect_message("Class 3 is the rarest now", "#feedback-message")
    lines = "[aria-roledescription='line mark']"
    expect(page.locator(f"#mix {lines}")).to_have_count(4)
    page.click("#reverse")
    visitor.expect_message("Class 0 is the rarest now", "#feedback-message")
    page.get_by_role("spinbutton", name="Alpha").fill("0")
    visitor.expect_message(r"Class 0 is the rarest now: 8% of the trained samples, and 7% without", "#feedback-message")
    expect(page.locator(f"#weights {lines}")).to_have_count(4)
    page.get_by_role("spinbutton", name="Alpha").fill("40")
    visitor.expect_message("^Alpha 40 is too high, and training would refuse it: .* from 31 on", "#feedback-message")
    expect(page.locator(f"#mix {lines}, #weights {lines}")).to_have_count(8)


# What can be touched, by its name, and its smaller side.
TARGETS = """() => [...document.querySelectorAll("button, textarea, input")].map(part => {
    const target = ["checkbox", "radio"].includes(part.type) ? part.closest("label") : part
    const {width, height} = target.getBoundingClientRect()
    return [part.ariaLabel || target.innerText || part.outerHTML, Math.min(width, height), target.checkVisibility()]
}).filter(([name, size, isVisible]) => isVisible && size > 0)"""


@pytest.mark.parametrize(("width", "height", "name"), [(390, 844, "app-phone"), (1280, 800, "app")])
def test_page_fits_its_screen(chromium, address, tmp_path, width, height, name):
    """The table is in view, and no target is smaller than 44 pixels.

    Save pictures in the folder ``SCREENSHOTS`` if it is set: ``SCREENSHOTS=assets`` makes assets/app.png.
    """
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    visitor = Visitor(chromium, address, width, height)
    page = visitor.page
    table = visitor.locator("#counts").bounding_box()
    assert table["y"] < height * 2 / 3 if width < 640 else table["y"] + table["height"] < height
    visitor.enter(n=1_000_000)
    assert page.evaluate("(field => field.scrollWidth <= field.clientWidth)(document.querySelector('#n input'))")
    visitor.enter(n=10, k=4)
    visitor.load_text(json.dumps({1: 3, 2: 2, 3: 2, 4: 1, 5: 2, 6: 1, 7: 2, 8: 4, 9: 2, 10: 1, 11: 2, 12: 3}))
    visitor.expect_message("Counts loaded: 12")
    assert len(targets := page.evaluate(TARGETS)) > 20
    assert [target for target in targets if target[1] < 44] == []
    page.get_by_role("button", name="As text").click()
    visitor.generate()
    visitor.expect_message("outside 1 to 10", "#warning")
    visitor.expect_bars({2: 7, 3: 2, 4: 1})
    for tab, suffix in (("Generator", ""), ("Feedback", "-feedback")):
        page.get_by_role("tab", name=tab).click()
        if suffix:
            page.click("#reverse")
            visitor.expect_message("Class 0 is the rarest now", "#feedback-message")
            assert len(targets := page.evaluate(TARGETS)) > 15
            assert [target for target in targets if target[1] < 44] == []
            expect(page.locator("#mix svg.marks")).to_be_visible()
            heads = [head.bounding_box() for head in page.locator(".sliders .head").all()]
            fields = [field.bounding_box() for field in page.locator(".sliders .head input").all()]
            assert len({round(field["y"] - head["y"]) for head, field in zip(heads, fields, strict=True)}) == 1
        page.mouse.move(0, 0)
        page.screenshot(path=folder / f"{name}{suffix}.png", full_page=True, animations="disabled")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert visitor.errors == []
    visitor.close()
