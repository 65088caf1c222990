"""The tab of the fair batch generator.

A visitor's counts are a ``gr.State`` on the server. A copy in the browser, a ``gr.BrowserState``, survives a reload.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from lightning_fair.app import session
from lightning_fair.app.components import QUIET, Update, notice

_LARGEST_TEXT = 100_000  # characters of JSON that are shown for copying
_LOW_TOP = 5  # of the histogram's axis for low bars
_STORAGE_KEY = "lightning-fair-rotation"  # also the key of the encryption: a new one at each start would lose the copy
_SESSION_LOST = "The server no longer has your session: reload the page to bring it back from your browser."
_COPY_CUT = f"Your browser keeps at most {session.MAX_COPIED:,} counts over a reload: press Save for a file."
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
# One event at a time: two clicks of a visitor change one rotation, and JSON of 32 MB takes hundreds of MB of memory.
_IN_TURN: dict[str, Any] = QUIET | {"concurrency_id": "rotations", "concurrency_limit": 1}


class Generator:
    """The tab of the fair batch generator."""

    def __init__(self) -> None:
        self.visit = gr.State(None)
        self.copy = gr.BrowserState(None, storage_key=_STORAGE_KEY, secret=_STORAGE_KEY)
        gr.Markdown("Press **Generate**, or Enter in a field, to draw the k least used numbers of the range.")
        with gr.Row(elem_classes="work"):
            with gr.Column():
                self._add_controls()
            with gr.Column():
                self._add_counts()
            with gr.Column():
                self._add_reset()
                self._add_files()
        self.shown = [self.visit, self.copy, self.batch, self.message, self.warning, self.clean, self.undo]
        self.shown += [self.plot, self.low_plot, self.rows]

    def _add_controls(self) -> None:
        with gr.Row(elem_classes="inputs"):
            n = gr.Number(session.DEFAULTS[0], label="N", info="range size", min_width=70, elem_id="n")
            k = gr.Number(session.DEFAULTS[1], label="k", info="batch size", min_width=70, elem_id="k")
            start = gr.Number(session.DEFAULTS[2], label="start", info="first number", min_width=70, elem_id="start")
        self.inputs = [n, k, start]
        self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
        self.batch = gr.Textbox(
            label="Batch",
            placeholder="Press Generate",
            interactive=False,
            max_lines=8,
            buttons=["copy"],
            elem_id="batch",
        )
        self.message = gr.HTML(elem_id="message", visible=False)
        self.warning = gr.HTML(elem_id="warning", visible=False)

    def _add_reset(self) -> None:
        self.seed = gr.Textbox(
            label="Seed",
            info="used by Reset, for the same batches again",
            placeholder="any",
            max_length=20,
            elem_id="seed",
        )
        with gr.Row():
            self.reset = gr.Button("Reset", variant="stop", elem_id="reset", **_SMALL)
            self.undo = gr.Button("Undo reset", interactive=False, elem_id="undo", **_SMALL)
            self.clean = gr.Button("Clean counts", interactive=False, elem_id="clean", **_SMALL)

    def _add_files(self) -> None:
        gr.Markdown(
            "### Save and load\nYour browser keeps the counts and the batch over a reload; of two tabs, those of the "
            "one that changed last. Press **Save** for a file of the counts, and **Load ...** to go on with it. "
            f"Limits: N to {session.LARGEST_N:,}, k to {session.LARGEST_K:,}, {session.MAX_COUNTS:,} counts in a file, "
            f"{session.MAX_COPIED:,} in the browser, {session.LARGEST_FILE // 2**20} MB for a file."
        )
        self.counts_only = gr.Checkbox(label="Counts only, without N, k and start", elem_id="counts-only")
        with gr.Row():
            self.save = gr.Button("Save", elem_id="save", **_SMALL)
            self.upload = gr.UploadButton("Load ...", elem_id="load", **_SMALL)
        self.download = gr.DownloadButton(visible="hidden", elem_id="download")
        with gr.Accordion("As text", open=False):
            self.text = gr.Textbox(
                label="JSON", lines=4, max_lines=8, placeholder='{"1": 3, "2": 2}', buttons=["copy"], elem_id="text"
            )
            with gr.Row():
                self.show_text = gr.Button("Show", elem_id="show-text", **_SMALL)
                self.load_text = gr.Button("Load text", elem_id="load-text", **_SMALL)

    def _add_counts(self) -> None:
        self.rows = gr.Dataframe(
            headers=["Number", "Count", "Remark"],
            datatype=["number", "number", "str"],
            interactive=False,
            max_height=420,
            elem_id="counts",
        )
        self.order = gr.Radio([*session.ORDERS], value="Number", label="Order of the table", elem_id="order")
        bars: dict[str, Any] = {"x": "count", "y": "numbers", "y_title": "numbers with that count", "sort": "x"}
        bars |= {"title": "Histogram of the counts", "height": 260, "elem_classes": "histogram"}
        # The axis of low bars would have ticks between whole numbers. Two plots, because one that gets other limits and
        # bars at once keeps the old bars.
        self.plot, self.low_plot = (gr.BarPlot(y_lim=[0, top], **bars) for top in (None, _LOW_TOP))

    def connect(self, demo: gr.Blocks) -> None:
        """Connect the components to their functions."""
        demo.load(self._restore, self.copy, [*self.shown, *self.inputs], **_IN_TURN)
        # "always_last": while an answer is under way, only the latest keystroke waits for the next one.
        self._on([field.input for field in self.inputs], trigger_mode="always_last")
        self._on(self.order.input, enter=False)
        self._on([self.generate.click, *(field.submit for field in self.inputs)], self._generate)
        self._on(self.clean.click, self._clean)
        self._on(self.reset.click, self._reset, *self.inputs, self.seed, enter=False)
        loads: dict[str, Any] = {"enter": False, "changes": self.inputs}
        self._on(self.undo.click, self._undo, **loads)
        self._on(self.upload.upload, self._load_file, self.upload, self.counts_only, **loads)
        self._on(self.load_text.click, self._load_text, self.text, self.counts_only, **loads)
        self._on(self.show_text.click, self._show_text, self.counts_only, changes=[self.text])
        saved = self._on(self.save.click, self._save, self.counts_only)
        saved.then(None, js="() => document.querySelector('#download').click()", **QUIET)

    def _on(
        self,
        events: Any,
        change: Callable[..., Update] | None = None,
        *inputs: Any,
        enter: bool = True,
        changes: Sequence[Any] = (),
        **options: Any,
    ) -> Any:
        """On an event, enter the fields N, k and start, call ``change`` and show the visit, or show the error.

        ``changes`` are the inputs of the page that the event may change. Only these are outputs of it, and each gets a
        plain value: one that is skipped or updated becomes a new component, and Gradio keeps the old one as well.
        """

        def run(visit: session.Visit | None, order: str, n: Any, k: Any, start: Any, *values: Any) -> Update:
            typed = dict(zip(self.inputs, (n, k, start), strict=True))
            same = {field: x if isinstance(x := typed.get(field), (int, float)) else None for field in changes}
            same |= {self.download: None, self.upload: None}
            if visit is None:
                return same | {self.message: notice(_SESSION_LOST, "bad")}
            try:
                if enter:
                    session.enter(visit, n, k, start)
                updates = change(visit, *values) if change else {}
                return same | self._show(updates.get(self.visit, visit), order) | updates
            except (ValueError, TypeError) as error:
                return same | {self.message: notice(str(error), "bad")}

        components = [self.visit, self.order, *self.inputs, *inputs]
        return gr.on(events, run, components, [*self.shown, self.download, self.upload, *changes], **_IN_TURN | options)

    def _show(self, visit: session.Visit, order: str) -> Update:
        """Return the updates that follow from the visit."""
        rotation, copy = visit.rotation, session.browser_copy(visit)
        labels, heights = session.histogram(rotation)
        bars, is_low = pd.DataFrame({"count": labels, "numbers": heights}), max(heights) < _LOW_TOP
        rows, total = session.table(rotation, order), rotation.n + len(rotation.out_of_range)
        mismatch, is_cut = rotation.mismatch, copy[1]
        warnings = [f"{mismatch} Press Clean counts to drop them."] if mismatch else []
        warnings += [_COPY_CUT] if is_cut else []
        return {
            self.copy: copy,
            self.batch: visit.batch,
            self.message: notice(""),
            self.warning: notice(" ".join(warnings), "warn"),
            self.clean: gr.update(interactive=bool(mismatch), variant="primary" if mismatch else "secondary"),
            self.undo: gr.update(interactive=visit.before is not None),
            self.plot: gr.update(value=bars, visible="hidden" if is_low else True),
            self.low_plot: gr.update(value=bars, visible=True if is_low else "hidden"),
            self.rows: gr.update(value=rows, label=f"{len(rows):,} of {total:,} numbers"),
        }

    def _fields(self, visit: session.Visit) -> Update:
        rotation = visit.rotation
        return dict(zip(self.inputs, (rotation.n, rotation.k, rotation.start), strict=True))

    def _restore(self, saved: Any) -> Update:
        """Return the updates of a new or reloaded page; ``saved`` is from the browser and may be anything."""
        visit, warning = session.restore(saved)
        message = {self.message: notice(warning, "warn")}
        return self._show(visit, "Number") | self._fields(visit) | {self.visit: visit} | message

    def _generate(self, visit: session.Visit) -> Update:
        visit.batch = ", ".join(map(str, visit.rotation.next_batch(warn=False)))
        return {}

    def _clean(self, visit: session.Visit) -> Update:
        return {self.message: notice(session.clean(visit))}

    def _reset(self, visit: session.Visit, *fields: Any) -> Update:
        message = "All counts are 0. Until you reload the page, Undo reset exchanges them for those before."
        return {self.visit: session.reset(visit, *fields), self.message: notice(message)}

    def _undo(self, visit: session.Visit) -> Update:
        visit = session.undo(visit)
        message = "The counts from before and after the reset are exchanged: press Undo reset again to change back."
        return self._fields(visit) | {self.visit: visit, self.message: notice(message)}

    def _load_file(self, visit: session.Visit, path: str | None, counts_only: bool) -> Update:
        return self._load_text(visit, session.read_file(path), counts_only)

    def _load_text(self, visit: session.Visit, text: str, counts_only: bool) -> Update:
        message = session.load(visit, text, counts_only=counts_only)
        return self._fields(visit) | {self.message: notice(message)}

    def _show_text(self, visit: session.Visit, counts_only: bool) -> Update:
        text = visit.rotation.to_json(counts_only=counts_only)
        if len(text) > _LARGEST_TEXT:
            raise ValueError(f"Text must have at most {_LARGEST_TEXT:,} characters, got {len(text):,}: press Save.")
        return {self.text: text}

    def _save(self, visit: session.Visit, counts_only: bool) -> Update:
        name = session.file_name(datetime.now(), counts_only=counts_only)
        folder = Path(self.download.GRADIO_CACHE)  # the folder whose old files Gradio deletes
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=folder), name)
        path.write_text(visit.rotation.to_json(counts_only=counts_only), encoding="utf-8")
        return {self.download: str(path), self.message: notice(f"Saved as {name}.")}
