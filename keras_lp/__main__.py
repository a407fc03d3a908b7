"""The command line: `keras-lp` or `python -m keras_lp`."""

import sys

from keras_lp.optional import require


def main() -> int:
    """Runs the command line; returns its exit code."""
    try:
        for package in ("click", "rich"):
            require(package, "cli")
    except ImportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    from keras_lp.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
