"""Where the `minigpt` command begins, as `python -m minigpt` does.

The command line itself is in `commands/cli.py`; here is only what must be ready before anything
else is imported, and after all is done: an answer to Ctrl-C.
"""

import sys


def main() -> int:
    """Run the command that the process was started with, and return its exit code."""
    try:
        import signal

        from minigpt.commands import cli

        code = cli.main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there was to do is done
    except KeyboardInterrupt:  # during the imports above; later ones are cli's business
        sys.stderr.write("\ninterrupted\n")
        code = 130
    return code


if __name__ == "__main__":
    sys.exit(main())
