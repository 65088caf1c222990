"""The web page: the fair batch generator, and the library's feedback shown live.

Start it with ``lightning-fair-app`` or ``python -m lightning_fair.app``; it needs ``pip install
"lightning-fair[app]"``.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        argv: Command line, without the program's name; None for the process's own.

    Raises:
        SystemExit: If the address is not free, with one sentence; or as ``argparse`` does.
    """
    from lightning_fair.app.page import serve  # Gradio is needed here and not before

    serve(argv)
