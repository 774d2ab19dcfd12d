"""The console script `qwq`, and `python -m qwqcli`: quiet when Ctrl-C comes during start-up."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line and leave with its exit code."""
    if sys.platform == "win32":  # a console of Windows must be asked to obey escape sequences
        import colorama

        colorama.just_fix_windows_console()
    try:
        from qwqcli.cli import main  # here, so that a Ctrl-C while importing is caught as well

        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    run()
