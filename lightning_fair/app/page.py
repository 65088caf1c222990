"""The page in Gradio, and its server. The modules ``session`` and ``simulation`` hold the rules, without Gradio."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError('The page needs Gradio: pip install "lightning-fair[app]".') from error

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lightning_fair.app.feedback import Feedback
from lightning_fair.app.generator import Generator
from lightning_fair.app.session import LARGEST_FILE

_UPLOAD_OVERHEAD = 10_000  # bytes that a form adds to a file
_FILE_SECONDS = 3600  # age at which saved files are deleted from the server
_SESSIONS = 100  # visitors whose counts, and those before a reset, the server keeps; the browser has a copy
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
_CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.notice { padding: .6rem .9rem; border-radius: 8px; border-left: 4px solid; overflow-wrap: anywhere; }
.notice.good { border-color: #009e73; background: #009e7318; }
.notice.bad { border-color: #d55e00; background: #d55e0018; }
.notice.warn { border-color: #e69f00; background: #e69f0020; }
.html-container:has(.notice) { padding: 0 !important; }
#batch textarea { font-size: 1.5rem; font-weight: 600; line-height: 1.5; }
/* The number of every slider is below its name, also if there is room beside the name. */
.sliders .head label { flex-basis: 100%; }
.sliders .tab-like-container { height: auto; }
/* Controls, counts and files one after the other; in two columns if there is room, with the counts on the right. */
.work { display: grid; grid-template: auto 1fr / repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.work > :nth-child(2) { grid-row: span 2; }
/* Targets of touch. */
:is(button, textarea, label:has(> input), input:not([type=checkbox], [type=radio])) {
  min-width: 44px; min-height: 44px;
}
.label-wrap { align-items: center; }
#batch label > span, #text label > span { min-height: 32px; }
/* In one column, what a button far below the batch says stays in view. */
@media (max-width: 880px) {
  #message { position: fixed; z-index: 9; inset: auto .5rem .5rem; background: var(--body-background-fill); }
  #message { max-width: calc(100% - 1rem); }
  .work { padding-bottom: 5rem; }
}
.inputs .form, .inputs { flex-wrap: nowrap; }
.inputs label { display: flex; flex-direction: column; height: 100%; }
/* Without the arrows of number fields, the largest N fits a phone. */
.inputs input, .inputs textarea { margin-top: auto; padding: .5rem .3rem !important; appearance: textfield; }
.inputs input::-webkit-inner-spin-button { display: none; }
"""


def build() -> gr.Blocks:
    """Return the page without its server."""
    demo = _Page(title="Fair batches", analytics_enabled=False, delete_cache=(_FILE_SECONDS, _FILE_SECONDS))
    with demo:
        gr.Markdown("# Fair batches")
        with gr.Tab("Generator"):
            Generator().connect(demo)
        with gr.Tab("Feedback"):
            Feedback().connect(demo)
    return demo


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        argv: Command line, without the program's name; None for the process's own.

    Raises:
        SystemExit: If the address is not free, with one sentence; or as ``argparse`` does.
    """
    parser = argparse.ArgumentParser("lightning-fair-app", description="Fair batches of integers, as a web page.")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="%(default)s")
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"), help="%(default)s")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(argv)
    address = f"http://{'localhost' if options.host in ('127.0.0.1', '0.0.0.0') else options.host}:{options.port}"
    demo = build()
    try:
        demo.launch(
            server_name=options.host,
            server_port=options.port,
            inbrowser=options.open,
            # Fonts of the visitor's system: Gradio would download those of the theme.
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=("monospace",)),
            css=_CSS,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(_LimitUploads)]},
            state_session_capacity=_SESSIONS,
            share=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError):
        sys.exit(f"The page cannot be served at {address}: choose a free one with --port, or another --host.")
    print(f"Fair batches: {address} (Ctrl+C ends it)", flush=True)
    demo.block_thread()


class _Page(gr.Blocks):
    """Answers in words if Gradio cannot read what a client sends."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error("The page has sent a value that its field cannot have: reload the page.") from error


class _LimitUploads:
    """Refuses uploads over 32 MB before they reach the disk.

    Not Gradio's ``max_file_size``: its message in the browser contains the file's name as HTML.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        app = self.app
        if b"multipart" in headers.get(b"content-type", b"").lower():
            length = headers.get(b"content-length", b"")
            if not length.isdigit() or int(length) > LARGEST_FILE + _UPLOAD_OVERHEAD:
                app = PlainTextResponse(f"A file must have at most {LARGEST_FILE // 2**20} MB.", 413)
        await app(scope, receive, send)
