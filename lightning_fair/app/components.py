"""Parts that both tabs of the page share."""

from __future__ import annotations

from html import escape
from typing import Any, Literal, TypeAlias

import gradio as gr

Update: TypeAlias = dict[Any, Any]  # new value or properties of each component

# Options of every event: no spinner, and not part of the server's programming interface.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def notice(text: str, tone: Literal["good", "bad", "warn"] = "good") -> Any:
    """Return a sentence for an HTML component; everything in it is escaped here."""
    role = "status" if tone == "good" else "alert"
    return gr.update(value=f'<div class="notice {tone}" role="{role}">{escape(text)}</div>', visible=bool(text))
