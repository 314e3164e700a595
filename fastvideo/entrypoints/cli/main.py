"""From the arguments to an exit code: 0, 1 after an error, 2 after wrong usage, 130 after Ctrl-C."""

import os
import sys
from collections.abc import Sequence

from fastvideo import envs
from fastvideo.entrypoints.cli.parser import COMMANDS, UsageError, parse
from fastvideo.utils import resolve

EXPECTED = (ValueError, OSError, ImportError)
"""Errors whose message says it all; of others the type is shown too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; errors are one line on standard error.

    With FASTVIDEO_LOGGING_LEVEL=DEBUG an error is raised instead, with its traceback.
    """
    try:
        debug = envs.logging_level() == "DEBUG"
    except ValueError as error:
        return fail(str(error), 1)
    try:
        command, options = parse(sys.argv[1:] if argv is None else list(argv))
        # imported on use: no command but the one that runs is loaded
        code: int = resolve(COMMANDS[command].run)(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return fail(f"{error} (see {error.help})", 2)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        return 1
    except Exception as error:
        if debug:
            raise
        name = "" if isinstance(error, EXPECTED) else f"{type(error).__name__}: "
        return fail(name + str(error), 1)


def fail(message: str, code: int) -> int:
    """Say `message` in one line and give `code`."""
    print("fastvideo:", " ".join(message.split()), file=sys.stderr)
    return code
