"""The page itself, in Gradio.

Nothing here decides anything: the rules are in :mod:`~lightning_fair.app.session` and
:mod:`~lightning_fair.app.simulation`, which know no Gradio. Every visitor has a session of their own, on the server
and, to outlive a reload or making room there for another, in their browser. Files are read and written by the
browser: the server holds none, and never learns their names.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from typing import Any, Literal, TypeAlias

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The page needs Gradio: pip install "lightning-fair[app]".') from error

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lightning_fair.app.charts import bar_chart, bin_counts, line_chart
from lightning_fair.app.session import (
    LARGEST_FILE,
    LARGEST_K,
    LARGEST_N,
    MOST_COUNTS,
    ORDERS,
    PAGE_ROWS,
    Session,
    Sessions,
    Table,
    file_name,
    file_text,
    table,
)
from lightning_fair.app.simulation import Settings, simulate
from lightning_fair.app.web import CHOOSE, CSS, DOWNLOAD, FONTS, MONO
from lightning_fair.common.arrays import Floats
from lightning_fair.rotation.serialization import LARGEST_COUNT

Update: TypeAlias = dict[Any, Any]
Done: TypeAlias = tuple[str, Update]  # what to say, and what to show besides the session
Tone: TypeAlias = Literal["good", "bad", "warn"]
# What an event does with N, k and start: it takes them over and stops at a bad one, or takes them over if they are
# good and else goes on with those in force, or sees to them itself.
Fields: TypeAlias = Literal["needed", "spare", "own"]

_PUT_AWAY = "Your session is no longer on the server, and your browser has no copy of it: reload the page."
_NOT_KEPT = "These counts are too many for your browser to keep over a reload: use Full save."
_LOST = "The counts were too many for your browser to keep, so all are 0 again: Full load brings back a saved file."
_SHOWN_JSON = 100_000  # characters of JSON that are shown for copying; longer ones are for a file
# Not a secret: it only has to be the same after the server was started anew, for the browser's copy to be read.
_BROWSER_KEY = "lightning-fair-rotation"
# Events answer at once, and are no programming interface of the page.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Reading and writing JSON takes some hundred MB while it lasts: one visitor after the other.
_IN_TURN: dict[str, Any] = {"concurrency_id": "json", "concurrency_limit": 1}
_SESSIONS = 30  # at up to 0.45 GB each, with a million counts: 13.5 GB, where a free Space has 16


def build() -> gr.Blocks:
    """Return the page, ready to be launched with ``demo.launch(**launch_options())``."""
    demo: gr.Blocks
    with gr.Blocks(title="Fair batches", analytics_enabled=False) as demo:
        gr.Markdown("# Fair batches\nBatches of numbers from a range, such that all are used equally often.")
        with gr.Tab("Generator"):
            _Generator().wire(demo)
        with gr.Tab("Feedback"):
            _Feedback().wire(demo)
    demo.queue(default_concurrency_limit=4)
    return demo


def launch_options() -> dict[str, Any]:
    """Return what ``launch`` is told besides the address: the looks, and the limits."""
    return {
        # The visitor's own fonts: the theme's would be downloaded.
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO),
        "css": CSS,
        "footer_links": [],
        "app_kwargs": {"middleware": [Middleware(_NoUploads)]},
        "state_session_capacity": _SESSIONS,  # what Gradio itself keeps of visitors
        "ssr_mode": False,
        "quiet": True,
    }


def serve(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        argv: Command line, without the program's name; None for the process's own.
    """
    parser = argparse.ArgumentParser("lightning-fair-app", description="Fair batches of integers, as a web page.")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="%(default)s")
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"), help="%(default)s")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(argv)
    host = "localhost" if options.host in ("127.0.0.1", "0.0.0.0") else options.host
    address, where = f"http://{host}:{options.port}", {"server_name": options.host, "server_port": options.port}
    demo = build()
    try:
        demo.launch(**where, inbrowser=options.open, share=False, prevent_thread_lock=True, **launch_options())
    except (OSError, OverflowError):
        sys.exit(f"The page cannot be served at {address}: choose a free one with --port, or another --host.")
    print(f"Fair batches: {address} (Ctrl+C ends it)", flush=True)
    demo.block_thread()


class _NoUploads:
    """Refuses what a form uploads: nothing here does, and Gradio would write it to the server's disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        types = (value for name, value in scope.get("headers", ()) if name == b"content-type")
        refused = any(b"multipart" in value.lower() for value in types)
        app = PlainTextResponse("This page takes no uploads.", 415) if refused else self.app
        await app(scope, receive, send)


class _Generator:
    """The tab of the fair batch generator. It holds the components; what visitors have lies in ``sessions``."""

    def __init__(self) -> None:
        # Not `gr.State`: of those that Gradio forgets, many stay in memory until Python looks for cycles.
        self.sessions = Sessions(_SESSIONS)
        self.kept = gr.BrowserState(None, storage_key=_BROWSER_KEY, secret=_BROWSER_KEY)
        # What passes between the server and the browser's own files.
        self.name, self.text = gr.Textbox(visible=False), gr.Textbox(visible=False)
        self.size = gr.Number(visible=False)
        with gr.Row():
            with gr.Column(scale=1):
                self._draw_controls()
                gr.Markdown(
                    "### Save and load\n**Quick** is the counts alone, **full** the counts and N, k and start. "
                    f"Limits: {MOST_COUNTS:,} numbers with a count, {LARGEST_COUNT:,} for a count, "
                    f"{LARGEST_FILE // 2**20} MB for a file. Your browser keeps the counts over a reload; of two tabs, "
                    "those of the one that changed last."
                )
                self._draw_saving()
            with gr.Column(scale=1):
                self._draw_counts()
        self.inputs = [self.n, self.k, self.start]
        self.visit = [self.kept, self.order, self.page]
        self.shown = [
            *(*self.inputs, self.batch, self.message, self.warning, self.clean),
            *(self.picture, self.page, self.rows, self.pasted, self.name, self.text, self.kept),
        ]

    def _draw_controls(self) -> None:
        with gr.Row(elem_classes="inputs"):
            self.n = gr.Number(10, label="N", info=f"range size, at most {LARGEST_N:,}", min_width=80, elem_id="n")
            self.k = gr.Number(3, label="k", info=f"batch size, at most {LARGEST_K:,}", min_width=80, elem_id="k")
            self.start = gr.Number(1, label="start", info="first number", min_width=80, elem_id="start")
        self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
        self.batch = gr.Textbox(
            label="Batch", interactive=False, lines=1, max_lines=8, buttons=["copy"], elem_id="batch"
        )
        self.message = gr.HTML(elem_id="message", visible=False)
        self.warning = gr.HTML(elem_id="warning", visible=False)
        with gr.Row():
            self.clean = gr.Button("Clean counts", interactive=False, size="sm", min_width=100, elem_id="clean")
            self.reset = gr.Button("Reset", variant="stop", size="sm", min_width=100, elem_id="reset")

    def _draw_saving(self) -> None:
        small: dict[str, Any] = {"size": "sm", "min_width": 100}
        with gr.Tab("File"):
            with gr.Row():
                self.quick_save = gr.Button("Quick save", elem_id="quick-save", **small)
                self.full_save = gr.Button("Full save", elem_id="full-save", **small)
            with gr.Row():
                self.quick_file = gr.Button("Quick load ...", elem_id="quick-file", **small)
                self.full_file = gr.Button("Full load ...", elem_id="full-file", **small)
        with gr.Tab("Pasted JSON"):
            example = '{"1": 3, "2": 2}'
            self.pasted = gr.Textbox(
                label="JSON", lines=4, max_lines=8, placeholder=example, buttons=["copy"], elem_id="pasted"
            )
            with gr.Row():
                self.quick_show = gr.Button("Quick save", elem_id="quick-show", **small)
                self.full_show = gr.Button("Full save", elem_id="full-show", **small)
            with gr.Row():
                self.quick_paste = gr.Button("Quick load", elem_id="quick-paste", **small)
                self.full_paste = gr.Button("Full load", elem_id="full-paste", **small)

    def _draw_counts(self) -> None:
        gr.Markdown("### Counts")
        self.picture = gr.HTML(elem_id="histogram")
        with gr.Row():
            self.order = gr.Dropdown(
                list(ORDERS),
                value=ORDERS[0],
                label="Sort",
                info="sorts the whole table",
                min_width=160,
                elem_id="order",
            )
            self.page = gr.Number(1, label="Page", info=f"{PAGE_ROWS} rows each", min_width=80, elem_id="page")
        self.rows = gr.Dataframe(
            headers=["Number", "Count", "Note"],
            datatype=["number", "number", "str"],
            column_widths=["30%", "30%", "40%"],
            interactive=False,
            show_label=False,
            max_height=420,
            elem_id="counts",
        )

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components to what they do."""
        demo.load(self._restore, self.visit, self.shown, concurrency_limit=1, **_QUIET)
        # One event for all of them: of two, the answer to what was typed first could come last.
        self._on([field.input for field in self.inputs], lambda _: ("", {}), trigger_mode="always_last")
        self._on(self.generate.click, self._generate, self.inputs, fields="own")
        self._on(self.clean.click, lambda session: (session.clean(), {}), fields="spare")
        self._on(self.reset.click, self._reset, fields="spare")
        for event in (self.order.input, self.page.submit, self.page.blur):
            event(self._turn_page, self.visit, self.shown, **_QUIET)
        loading: dict[str, Any] = _IN_TURN | {"show_progress": "full", "show_progress_on": self.picture}
        for button, full in ((self.quick_file, False), (self.full_file, True)):
            inputs = [self.text, self.size]
            # A file dialogue that is closed in an old browser never ends its event; the next may start all the same.
            choosing = loading | {"js": CHOOSE, "trigger_mode": "multiple"}
            self._on(button.click, self._loading_file(full), inputs, fields="own" if full else "spare", **choosing)
        for button, full in ((self.quick_paste, False), (self.full_paste, True)):
            pasted = [self.pasted]
            self._on(button.click, self._loading_text(full), pasted, fields="own" if full else "spare", **loading)
        for button, full in ((self.quick_show, False), (self.full_show, True)):
            self._on(button.click, self._showing_json(full), fields="needed" if full else "spare", **_IN_TURN)
        for button, full in ((self.quick_save, False), (self.full_save, True)):
            saved = self._on(button.click, self._saving_file(full), fields="needed" if full else "spare", **_IN_TURN)
            saved.then(None, [self.name, self.text], None, js=DOWNLOAD, **_QUIET)

    def _on(
        self,
        events: Any,
        change: Callable[..., Done],
        inputs: Sequence[Any] = (),
        *,
        fields: Fields = "needed",
        **options: Any,
    ) -> Any:
        """Let an event take over the inputs, change the session and show it; where it may not, say why."""

        def run(
            kept: Any,
            order: str,
            page: Any,
            request: gr.Request,
            n: Any,
            k: Any,
            start: Any,
            *values: Any,
        ) -> Update:
            session, update = self._awake(kept, order, page, request)
            if session is None:
                return update
            wrong = ""
            with session.lock:
                try:
                    if fields != "own":
                        wrong = _refusal(session.enter, n, k, start)
                    if wrong and fields == "needed":
                        return {self.message: _say(wrong, "bad"), self.name: ""}
                    said, more = change(session, *values)
                except (ValueError, TypeError) as error:
                    return {self.message: _say(f"{error} {wrong}".strip(), "bad"), self.name: ""}
                return self._show(session, order, page, said, wrong) | more

        return gr.on(events, run, [*self.visit, *self.inputs, *inputs], self.shown, **_QUIET | options)

    def _awake(self, kept: Any, order: str, page: Any, request: gr.Request) -> tuple[Session | None, Update]:
        """Return the visitor's session, from their browser where it made room for another on the server.

        Without one, the update is what to show instead: the browser has no copy either, or one without counts, of
        which no batch is to be drawn and no file to be saved before the visitor knows.
        """
        session = self.sessions.get(request.session_hash, lambda: Session.unpack(kept))
        if session is None:
            return None, {self.message: _say(_PUT_AWAY, "bad"), self.name: ""}
        return (None, self._restored(session, order, page)) if session.lost else (session, {})

    def _show(self, session: Session, order: str, page: Any, said: str = "", wrong: str = "") -> Update:
        """Return what follows from the session, all but the inputs; ``wrong`` says which of those is not in force."""
        with session.lock:
            mismatch, packed = session.rotation.mismatch, session.pack()
            labels, heights = bin_counts(session.rotation.tallies)
            part = table(session.rotation, order, page)
        unkept = _NOT_KEPT if "too_many" in packed else ""
        return {
            self.message: _say(" ".join(filter(None, (said, wrong, unkept))), "warn" if wrong or unkept else "good"),
            self.warning: _say(f"{mismatch} Clean counts drops them." if mismatch else "", "warn"),
            self.clean: gr.update(interactive=bool(mismatch), variant="primary" if mismatch else "secondary"),
            self.picture: bar_chart(labels, heights, "Histogram of the counts", "count", "numbers with that count"),
            **self._page(part),
            self.kept: packed,
        }

    def _fields(self, session: Session) -> Update:
        """Return the inputs as the session has them. Only a load writes them: a visitor may be typing there."""
        return dict(zip(self.inputs, session.inputs, strict=True))

    def _page(self, part: Table) -> Update:
        return {
            self.page: gr.update(value=part.page, label=f"Page (of {part.pages:,})"),
            self.rows: [list(row) for row in part.rows],
        }

    def _restore(self, kept: Any, order: str, page: Any, request: gr.Request) -> Update:
        session = self.sessions.get(request.session_hash, lambda: Session.unpack(kept) or Session())
        return self._restored(session, order, page) if session else {}

    def _restored(self, session: Session, order: str, page: Any) -> Update:
        """Return all of a session that comes from the browser; where its counts are lost, say so, once."""
        shown = self._show(session, order, page) | self._fields(session) | {self.name: ""}
        if session.lost:
            session.lost = False
            shown |= {self.message: _say(_LOST, "warn"), self.batch: ""}
        return shown

    def _turn_page(self, kept: Any, order: str, page: Any, request: gr.Request) -> Update:
        session, update = self._awake(kept, order, page, request)
        if session is None:
            return update
        with session.lock:
            return self._page(table(session.rotation, order, page))

    def _generate(self, session: Session, *typed: Any) -> Done:
        return "", {self.batch: ", ".join(map(str, session.generate(*typed)))}

    def _reset(self, session: Session) -> Done:
        session.reset()
        return "All counts are 0 again.", {self.batch: ""}

    def _loading_file(self, full: bool) -> Callable[[Session, str | None, float], Done]:
        def run(session: Session, text: str | None, size: float) -> Done:
            if size < 0:  # no file was chosen
                return "", {}
            said = session.load(file_text(text, size), full=full)
            # The text is up to 32 MB that Gradio would keep.
            return said, {self.text: ""} | (self._fields(session) if full else {})

        return run

    def _loading_text(self, full: bool) -> Callable[[Session, str | None], Done]:
        def run(session: Session, text: str | None) -> Done:
            return session.load(text or "", full=full), self._fields(session) if full else {}

        return run

    def _showing_json(self, full: bool) -> Callable[[Session], Done]:
        def run(session: Session) -> Done:
            text = session.to_json(counts_only=not full)
            if len(text) > _SHOWN_JSON:
                raise ValueError(f"The JSON has {len(text):,} characters, too many to show here: save it as a file.")
            return "Copy the JSON below.", {self.pasted: text}

        return run

    def _saving_file(self, full: bool) -> Callable[[Session], Done]:
        def run(session: Session) -> Done:
            name = file_name("full" if full else "counts", datetime.now())
            return f"Saved as {name}.", {self.name: name, self.text: session.to_json(counts_only=not full)}

        return run


class _Feedback:
    """The tab that shows the negative feedback at work."""

    def __init__(self) -> None:
        first = Settings()
        self.turns = gr.State(0)
        gr.Markdown(
            "The library's sampler draws batches from four classes, a quarter of each wanted. On the way to the "
            "trainer the stream loses samples: of the commonest class all come through, of the rarest one in so many "
            "as the imbalance says. Nobody tells the sampler; it learns from what was trained on, and draws more of "
            "what fell behind. Turn the stream over, and the commonest class becomes the rarest."
        )
        with gr.Row(elem_classes="sliders"):
            wide: dict[str, Any] = {"min_width": 190}
            self.sliders = [
                gr.Slider(1, 50, first.imbalance, step=1, label="Imbalance", info="commonest to rarest", **wide),
                gr.Slider(0, 40, first.alpha, step=0.5, label="Alpha", info="gain; 0: no feedback", **wide),
                gr.Slider(0, 0.2, first.floor, step=0.005, label="Floor", info="least probability", **wide),
                gr.Slider(2, 64, first.horizon, step=1, label="Horizon", info="batches it looks back on", **wide),
                gr.Slider(0, 1, first.loss_emphasis, step=0.05, label="Loss emphasis", info="lambda2", **wide),
            ]
        self.turn = gr.Button("Turn the stream over", variant="primary", elem_id="turn")
        self.message = gr.HTML(elem_id="feedback-message")
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("### Class mix of what is trained on")
                self.mix = gr.HTML(elem_id="mix")
            with gr.Column(min_width=300):
                gr.Markdown("### Importance weight of a sample")
                self.weights = gr.HTML(elem_id="weights")

    def wire(self, demo: gr.Blocks) -> None:
        """Connect the components to what they do."""
        inputs, plots = [self.turns, *self.sliders], [self.message, self.mix, self.weights]
        demo.load(self._draw, inputs, plots, **_QUIET)
        changes = [slider.change for slider in self.sliders]
        gr.on(changes, self._draw, inputs, plots, trigger_mode="always_last", **_QUIET)
        self.turn.click(self._turn_over, inputs, [self.turns, *plots], **_QUIET)

    def _turn_over(self, turns: int, *values: float) -> Update:
        return {self.turns: turns + 1} | self._draw(turns + 1, *values)

    def _draw(self, turns: int, *values: float) -> Update:
        try:
            trace = simulate(Settings(*values), turns)
        except (ValueError, TypeError) as error:
            return {self.message: _say(str(error), "bad"), self.mix: "", self.weights: ""}
        rarest = int(trace.unsteered[-1].argmin())
        said = (
            f"Class {rarest} is the rarest now: {trace.trained[-1, rarest]:.0%} of what is trained on, where it would "
            f"be {trace.unsteered[-1, rarest]:.0%} without feedback. Wanted: {trace.target[rarest]:.0%}."
        )
        axes: dict[str, Any] = {"xlabel": "batch", "first": trace.first, "marks": trace.turns}
        return {
            self.message: _say(said),
            self.mix: line_chart(
                _by_class(trace.arrived),
                "Class mix by batch",
                ylabel="share; dashed: target; thin: without feedback",
                level=float(trace.target[0]),
                faint=_by_class(trace.unsteered),
                **axes,
            ),
            self.weights: line_chart(
                _by_class(trace.weights),
                "Importance weight of each class by batch",
                ylabel="q / p of the class",
                level=1.0,
                **axes,
            ),
        }


def _refusal(enter: Callable[..., None], *typed: Any) -> str:
    """Return why the inputs are refused; nothing where they are taken over."""
    try:
        enter(*typed)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def _by_class(values: Floats) -> dict[str, Floats]:
    return {f"class {label}": column for label, column in enumerate(values.T)}


def _say(text: str, tone: Tone = "good") -> Any:
    """Return a sentence for an HTML component; whatever of it a visitor typed or uploaded is escaped here."""
    role = "status" if tone == "good" else "alert"
    return gr.update(value=f'<div class="notice {tone}" role="{role}">{escape(text)}</div>', visible=bool(text))
