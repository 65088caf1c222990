"""``python -m lightning_fair.app``."""

from lightning_fair.app.page import main

if __name__ == "__main__":
    main()
