"""One archive for publishing: page, figures, tables, records, and how to repeat it. The same records give the same bytes."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tqbench.core.files import write_atomic
from tqbench.importers.folder import FILE, Imports
from tqbench.report import about, foreign, latex, markdown, summary
from tqbench.report.conclusion import Judged
from tqbench.report.run import Run
from tqbench.report.text import plain
from tqbench.report.together import View
from tqbench.report.write import write_figures, write_pages

EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date that an archive can hold
KEPT = ("plan.json", "environment.json", "cells/*/record.json", "cells/*/*.npy")


def write_bundle(judged: Sequence[Judged], views: Sequence[View], to: Path, imports: Sequence[Imports] = ()) -> int:
    """Write the archive; how many files are in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pages(judged, views, folder, foreign.tables(imports))
        write_figures(views, folder / "figures")
        (folder / "tables").mkdir()
        for run, _ in judged:
            for suffix, text in (("csv", summary.render(run)), ("md", markdown.brief(run) + "\n"), ("tex", latex.render(run))):
                (folder / "tables" / f"{_name(run)}.{suffix}").write_text(text, "utf-8")
        contents = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    for run, _ in judged:
        contents |= {f"runs/{_name(run)}/{path.relative_to(run.folder)}": path.read_bytes() for path in _records(run)}
    contents |= {f"imported/{one.name}/{FILE}": (one.folder / FILE).read_bytes() for one in imports}
    contents["README.md"] = _readme(judged).encode()
    contents["MANIFEST.sha256"] = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(contents.items())
    ).encode()
    write_atomic(to, _zip(contents))
    return len(contents)


def _name(run: Run) -> str:
    return f"{run.suite}-{run.name}".replace("/", "-")


def _records(run: Run) -> list[Path]:
    return sorted(path for pattern in KEPT for path in run.folder.glob(pattern) if path.is_file())


def _zip(contents: dict[str, bytes]) -> bytes:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(contents):
                entry = zipfile.ZipInfo(path, EPOCH)
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, contents[path])
        file.seek(0)
        return file.read()


def _readme(judged: Sequence[Judged]) -> str:
    parts = [
        "# " + markdown.escape(" + ".join(dict.fromkeys(run.suite for run, _ in judged))),
        "`index.html` is the report and needs nothing else. `figures/` has each figure as SVG, PDF and PNG with its numbers as CSV; "
        "`tables/` the tables as CSV, Markdown and LaTeX; `runs/` the records that all of it is made from. `sha256sum -c MANIFEST.sha256` "
        "checks the files; `tqbench report runs/NAME` makes the report again and `tqbench gate runs/NAME` the verdicts, without measuring.",
    ]
    for run, found in judged:
        parts += [
            f"## {markdown.escape(run.suite)} {markdown.escape(run.name)}: {found.sentence}",
            f"To measure it again:\n\n    {plain(run.command)}",
            "\n".join(f"- {markdown.escape(name)}: {markdown.escape(text)}" for name, text in about.texts(run)),
            f"Measured with {markdown.escape(json.dumps(run.environment.get('versions', {}), ensure_ascii=False))}.",
        ]
    return "\n\n".join(parts) + "\n"
