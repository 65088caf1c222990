"""The fair batch generator as a Hugging Face Space, which starts this file with ``python app.py``."""

from lightning_fair.app.page import main

main(["--host", "0.0.0.0"])  # a Space is reached from outside its container
