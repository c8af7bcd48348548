"""What a shell completes after Tab: suites, schemes, runs and names. Nothing heavy is imported, and a mistake completes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

MOST_FOLDERS = 200  # that are looked at for suites and runs


def suites(incomplete: str) -> list[str]:
    """YAML files and folders under what is written so far; the shipped suites before anything is."""
    where, _, begin = incomplete.rpartition("/")
    folder = Path(where or ("/" if incomplete.startswith("/") else ".")).expanduser()
    prefix = f"{where}/" if "/" in incomplete else ""
    with contextlib.suppress(OSError):
        entries = sorted(path for path in folder.iterdir() if path.name.startswith(begin) and not path.name.startswith("."))
        found = [f"{prefix}{path.name}" for path in entries if path.suffix in (".yaml", ".yml") and path.is_file()]
        found += [f"{prefix}{path.name}/" for path in entries if path.is_dir() and any(path.glob("*.y*ml"))]
        ready = [f"suites/{path.name}" for path in sorted(Path("suites").glob("*.yaml"))] if not incomplete else []
        return list(dict.fromkeys([*ready, *found]))
    return []


def runs(incomplete: str) -> list[str]:
    """Suites with runs, and the runs themselves once a suite is written: `quickstart/` goes on with its runs."""
    plans = [path.parent for _, path in zip(range(MOST_FOLDERS), Path("results").glob("*/*/plan.json"), strict=False)]
    names = {folder.parent.name for folder in plans} - {"reference"}
    whole = {f"{folder.parent.name}/{folder.name}" for folder in plans}
    return _starting(sorted(names) + sorted(whole), incomplete)


def reported(incomplete: str) -> list[str]:
    """Runs, and what was imported from other tools."""
    found = sorted(f"imported/{path.parent.name}" for path in Path("results/imported").glob("*/imported.json"))
    return [*runs(incomplete), *_starting(found, incomplete)]


def tools(incomplete: str) -> list[str]:
    """The tools whose files are read."""
    from tqbench.importers import TOOLS

    return _starting(TOOLS, incomplete)


def schemes(incomplete: str) -> list[str]:
    """Schemes; after a slash those that V may take."""
    from tqbench.core.presets import presets

    first, slash, _ = incomplete.rpartition("/")
    return _starting([f"{first}{slash}{name}" for name in presets()], incomplete)


def labels(incomplete: str) -> list[str]:
    """Schemes for -k, apart by commas."""
    first, comma, last = incomplete.rpartition(",")
    return [f"{first}{comma}{name}" for name in schemes(last)]


def backends(incomplete: str) -> list[str]:
    """The installed backends."""
    from tqbench.core.registry import backend_names

    return _starting(backend_names(), incomplete)


def models(incomplete: str) -> list[str]:
    """The packaged models."""
    from tqbench.models.packaged import PACKAGED

    return _starting(PACKAGED, incomplete)


def corpora(incomplete: str) -> list[str]:
    """The known corpora."""
    from tqbench.corpora import names

    return _starting(names(), incomplete)


def kinds(incomplete: str) -> list[str]:
    """What `tqbench schema` prints."""
    return _starting(("suite", "plan", "environment", "record", "bench", "imported"), incomplete)


def of(*names: str) -> Callable[[str], list[str]]:
    """These words."""

    def complete(incomplete: str) -> list[str]:
        return _starting(names, incomplete)

    return complete


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
