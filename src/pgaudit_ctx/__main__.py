"""``python -m pgaudit_ctx`` is ``pgaudit-ctx``."""

from pgaudit_ctx.cli import main

if __name__ == "__main__":
    main()
