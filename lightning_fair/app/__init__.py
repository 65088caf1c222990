"""The web page: the fair batch generator, and the library's feedback shown live.

Start it with ``lightning-fair-app`` or ``python -m lightning_fair.app``. It needs Gradio:
``pip install "lightning-fair[app]"``.
"""
