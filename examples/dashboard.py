"""Make the screenshot of TensorBoard: `python examples/dashboard.py`.

The script trains `experiment=drift` on two classes, with buffers that are too small for a change of the class mix, so
that the mix leaves its band. It opens TensorBoard on the run in a headless Chromium (Debian: `apt-get install
chromium`), and takes a screenshot of the tab Custom Scalars. `--logdir DIR` shows an existing run.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).resolve().parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CARDS = "tf-custom-scalar-multi-line-chart-card"
# The length of a chart's longest SVG path. A chart without data has only axes and the symbols of its legend.
LONGEST_PATH = """card => {
    let longest = 0;
    const look = node => {
        if (node.shadowRoot) look(node.shadowRoot);
        if (node.tagName === "path") longest = Math.max(longest, (node.getAttribute("d") || "").length);
        node.childNodes.forEach(look);
    };
    look(card);
    return longest;
}"""
EMPTY = 120
PATIENCE = 60.0  # seconds


def train(folder: Path) -> Path:
    """Train on a stream that drifts, and return the folder of the logs."""
    settings = ["experiment=drift", "data.cycles=4", "data.buffer_size=32", "data.max_reuse=16"]
    settings += ["data.num_classes=2", "data.imbalance_ratio=99", "model.num_classes=2"]
    settings += ["trainer.log_every_n_steps=4", "trainer.enable_progress_bar=false", f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, HERE / "train.py", *settings], check=True)
    return folder


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Serve the logs on localhost, and yield the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir.name, "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*command, "--port", str(port)], cwd=logdir.parent, **quiet)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        "TensorBoard did not start. Is it installed (`pip install tensorboard`)?"
                    ) from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def chromium(width: int, height: int) -> Iterator[Page]:
    """Open a page in the installed Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("No Chromium is installed. On Debian: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def charts(page: Page, address: str) -> dict[str, bool]:
    """Open the tab Custom Scalars, and return for each chart, by title, whether it shows a line."""
    deadline = time.monotonic() + PATIENCE
    shown: dict[str, bool] = {}
    while not (shown and all(shown.values())) and time.monotonic() < deadline:
        # Repeated, because TensorBoard may not have read the logs yet.
        page.goto("about:blank")
        page.goto(f"{address}/#custom_scalars")
        cards = page.locator(CARDS)
        for _ in range(20):
            page.wait_for_timeout(250)
            shown = {title(card): card.evaluate(LONGEST_PATH) > EMPTY for card in cards.all()}
            if shown and all(shown.values()):
                break
    return shown


def title(card: Any) -> str:
    """Return the title of a chart."""
    return str(card.locator("tf-card-heading figcaption").first.inner_text()).strip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", type=Path, help="folder with the logs of a run; without it, one is trained")
    parser.add_argument("--out", type=Path, default=HERE.parent / "assets" / "dashboard.png", help="the screenshot")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        logdir = args.logdir or train(Path(folder) / "drift").resolve()
        with tensorboard(logdir) as address, chromium(1500, 1590) as page:
            shown = charts(page, address)
            page.screenshot(path=args.out)
    for name, is_shown in shown.items():
        print(f"{name}: {'shown' if is_shown else 'EMPTY'}")
    if not shown or not all(shown.values()):
        raise SystemExit("Not every chart shows something.")


if __name__ == "__main__":
    main()
