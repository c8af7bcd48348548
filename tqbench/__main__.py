"""The way in: runs the command line, and turns whatever happens into a line on stderr and an exit code."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqbench.core.errors import ConfigError, EditedError, LockedError, TqbenchError

USAGE, INCOMPLETE, AUDIT, INTERNAL, INTERRUPTED = 2, 3, 4, 70, 130
PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ is no reason to fail
    try:
        from tqbench.cli import app

        app(args=None if args is None else list(args), prog_name="tqbench")
    except SystemExit as end:
        return _ended(end)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _pipe_closed()
    except TqbenchError as error:
        return _refused(error)
    except ModuleNotFoundError as error:
        return _lacking(error)
    except Exception as error:  # noqa: BLE001 - the last resort: nobody else is left to catch it
        return _crashed(error)
    return 0


def _ended(end: SystemExit) -> int:
    """The command line library ends with 1 when it is interrupted or its pipe closes; 1 is for gates."""
    causes = list(_causes(end))
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        return _pipe_closed()
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return INTERRUPTED
    return end.code if isinstance(end.code, int) else 0 if end.code is None else USAGE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _pipe_closed() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere, and says nothing at exit
    return PIPE_CLOSED


def _refused(error: TqbenchError) -> int:
    from tqbench.report.text import plain

    problems = error.problems if isinstance(error, ConfigError) else [f"tqbench: {line}" for line in str(error).splitlines()]
    sys.stderr.write("".join(f"{plain(line)}\n" for line in problems))
    if os.environ.get("TQBENCH_DEBUG") == "1":
        traceback.print_exception(error)
    return USAGE if isinstance(error, ConfigError | LockedError) else AUDIT if isinstance(error, EditedError) else INCOMPLETE


def _lacking(error: ModuleNotFoundError) -> int:
    """From its sources tqbench starts without the packages that it needs; all of them are named at once."""
    from tqbench.core.uninstalled import lacking

    if not (needed := lacking()):
        return _crashed(error)
    sys.stderr.write(f"tqbench: needs {' and '.join(needed)}; install with: pip install {shlex.join(needed)}\n")
    return USAGE


def _crashed(error: Exception) -> int:
    from tqbench.measure.environment import versions
    from tqbench.report.text import plain

    trace = "".join(traceback.format_exception(error))
    known = "\n".join(f"{name} {version}" for name, version in versions().items())
    details = f"{' '.join(sys.argv)}\n\nPython {sys.version}\n{known}\n\n{trace}"
    name = f"tqbench-crash-{hashlib.sha256(trace.encode(errors='replace')).hexdigest()[:8]}.txt"
    sys.stderr.write(f"tqbench: internal error: {plain(f'{type(error).__name__}: {error}')[:500]}\n")
    sys.stderr.write(f"This is a mistake in tqbench. Please report it with {_write(name, details)}\n")
    if os.environ.get("TQBENCH_DEBUG") == "1":
        sys.stderr.write(trace)
    return INTERNAL


def _write(name: str, details: str) -> str:
    """Into the working folder, or where that cannot be written to, the system's place for temporary files."""
    for folder in (Path(), Path(tempfile.gettempdir())):
        try:
            (folder / name).write_text(details, encoding="utf-8", errors="replace")
        except OSError:
            continue
        return str(folder / name)
    return "what is above"


if __name__ == "__main__":
    sys.exit(main())
