"""``python -m guerrilla`` is ``guerrillad``."""

from guerrilla.cli import main

if __name__ == "__main__":
    main()
