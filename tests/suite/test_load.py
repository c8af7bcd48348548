"""Suites are refused with every mistake at once, each at its line; and nothing that a file can hold is a traceback."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tqbench.core.errors import ConfigError
from tqbench.suite.load import load
from tqbench.suite.plan import plan
from tqbench.suite.schema import Overrides

SUITES = Path(__file__).parents[2] / "suites"
GOOD = """\
model: smollm2-135m-instruct-q4_1
corpus: python-docs
schemes:
  - q8_0
tasks:
  - perplexity: {context: 64, tokens: 128}
"""


def problems(*paths: Path, **overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(paths, Overrides(**overrides))
    return caught.value.problems


@pytest.fixture
def suite(tmp_path: Path):
    """Writes a suite file and returns its path."""

    def write(text: str | bytes, name: str = "suite.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_six_mistakes_in_two_files_are_reported_at_once(suite) -> None:
    first = suite(
        """\
modle: smollm2-135m-instruct-q4_1
model: ./no-such-model
corpus: python-docs
schemes:
  - q8_O
  - name: mine
    k: {codec: codebook, bits: 9}
    v: q8_0
tasks:
  - perplexity: {context: 100M}
  - perplexity:
      context: [512, 999999999999]
""",
        "first.yaml",
    )
    second = suite("model: a\n  b: c\n", "second.yaml")
    expected = [
        (first, 1, "unknown key 'modle'; did you mean 'model'? (known: backend, calibration, corpus, "),
        (first, 2, "model './no-such-model' does not exist"),
        (first, 5, "unknown scheme 'q8_O'; did you mean 'q8_0'? (known: "),
        (first, 7, "bits must be one of 1, 2, 3, 4"),
        (first, 10, "context must be a whole number of tokens from 16 to 16777216, or a list of them; 8k is 8192, got '100M'"),
        (first, 12, "context must be a whole number of tokens from 16 to 16777216"),
        (second, 2, "not valid YAML: mapping values are not allowed here"),
    ]
    found = problems(first, second)
    assert len(found) == len(expected)
    for line, (path, number, text) in zip(found, expected, strict=True):
        assert line.startswith(f"{path}:{number}: {text}")


def test_a_context_beyond_the_models_positions_is_refused_at_its_line(suite) -> None:
    path = suite(changed("{context: 64, tokens: 128}", "\n      tokens: 32k\n      context:\n        - 8k\n        - 9k"))
    (line,) = problems(path)
    assert line == f"{path}:10: context 9216 is longer than the 8192 positions of 'smollm2-135m-instruct-q4_1'; allowed are 16 to 8192"


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("corpus: python-docs", "corpus: python-doc", 2, "unknown corpus 'python-doc'; did you mean 'python-docs'?"),
        ("corpus: python-docs", "corpus: {name: file, path: nowhere.txt}", 2, "the file 'nowhere.txt' does not exist"),
        ("corpus: python-docs", "corpus: {name: python-docs, path: x}", 2, "unknown option of corpus python-docs 'path'"),
        ("corpus: python-docs", "corpus: 5", 2, "corpus must be a name or {name: …, path: …}, got 5"),
        (
            "corpus: python-docs",
            "corpus: python-docs\ncalibration: 4096",
            3,
            "calibration must be a mapping {corpus: …, tokens: …, seed: …}",
        ),
        ("corpus: python-docs", "corpus: python-docs\ncalibration: {token: 4k}", 3, "unknown key 'token'; did you mean 'tokens'?"),
        ("corpus: python-docs", "corpus: python-docs\ncalibration: {tokens: 0}", 3, "tokens must be a whole number of tokens from 1 to"),
        ("corpus: python-docs", "corpus: python-docs\ncalibration: {seed: -1}", 3, "seed must be a whole number, 0 or more, got -1"),
        ("corpus: python-docs", "corpus: python-docs\ncalibration:\n  corpus: python-doc", 4, "unknown corpus 'python-doc'; did you mean"),
        (
            "corpus: python-docs",
            "corpus: python-docs\ncalibration:\n  corpus: {name: file,\n    path: nowhere.txt}",
            5,
            "the file 'nowhere.txt' does not exist",
        ),
        ("corpus: python-docs", "corpus: python-docs\nbackend: mxl", 3, "unknown backend 'mxl'; did you mean 'mlx'?"),
        ("corpus: python-docs", "corpus: python-docs\ndtype: flot32", 3, "unknown dtype 'flot32'; did you mean 'float32'?"),
        ("corpus: python-docs", "corpus: python-docs\nkernel: nativ", 3, "unknown kernel 'nativ'; did you mean 'native'?"),
        ("corpus: python-docs", "corpus: python-docs\nkernel: decod=native", 3, "unknown operation 'decod'; did you mean 'decode'?"),
        ("corpus: python-docs", "corpus: python-docs\nkernel: attend=warp", 3, "unknown form of attend 'warp'"),
        ("corpus: python-docs", "corpus: python-docs\ntimeout: -1", 3, "timeout must be a number of seconds per cell, above 0, got -1"),
        ("corpus: python-docs", "corpus: python-docs\ntimeout: .nan", 3, "timeout must be"),
        (
            "corpus: python-docs",
            "corpus: python-docs\nname: No",
            3,
            "name must be a name of at most 64 of a-z 0-9 _ -, got false; put it in",
        ),
        ("corpus: python-docs", "corpus: python-docs\nname: ../up", 3, "name must be a name of at most 64 of a-z 0-9 _ -, got '../up'"),
        ("corpus: python-docs", "corpus: python-docs\nbypass: identity", 3, "unknown key 'bypass'"),
        ("corpus: python-docs", "corpus:", 2, "corpus is missing"),
        ("model: smollm2-135m-instruct-q4_1", "model: [smollm2-135m-instruct-q4_1, smollm]", 1, "unknown model 'smollm'"),
        ("model: smollm2-135m-instruct-q4_1", f"model: {'x' * 5000}", 1, "model must be a name or a list of names"),
        ("  - q8_0", "  - q8_0\n  - {name: q8_0, k: q4_0, v: q4_0}", 5, "'q8_0' is a preset that does something else"),
        (
            "  - q8_0",
            "  - {name: a, k: q4_0, v: q4_0}\n  - {name: a, k: q8_0, v: q4_0}",
            5,
            "the name 'a' is given to two different schemes",
        ),
        ("  - q8_0", "  - {name: a, k: q4_0, v: q4_0}\n  - {name: a, k: q8_0, v: q4_0, bypass: bridge}", 5, "the name 'a' is given to"),
        ("  - q8_0", "  - {name: baseline, k: q4_0, v: q4_0}", 4, "the name 'baseline' belongs to the model's own cache"),
        ("  - q8_0", "  - {scheme: turbo4, bypas: bridge}", 4, "unknown scheme key 'bypas'; did you mean 'bypass'?"),
        ("  - q8_0", "  - {name: a, k: {codec: [1]}, v: q8_0}", 4, "unknown codec"),
        ("schemes:\n  - q8_0", "schemes: []", 3, "schemes must be a list of at least one scheme"),
        ("context: 64", "context: 15", 6, "context must be a whole number of tokens from 16"),
        ("context: 64", "context: 0x40", 6, "context must be a whole number of tokens from 16"),
        ("context: 64", "context: 1:30", 6, "context must be a whole number of tokens from 16"),
        ("context: 64", "context: yes", 6, "context must be a whole number of tokens from 16"),
        ("context: 64", "context: 256", 6, "tokens 128 do not fill one window: context is 256"),
        ("context: 64", "context: 64, chunk: 65", 6, "chunk 65 is longer than the window: context is 64"),
        ("context: 64", "context: 64, warmup: 64", 6, "warmup 64 leaves nothing to score"),
        (
            "context: 64",
            "context: 64, warmup: 8, recipe: llamacpp",
            6,
            "recipe llamacpp takes no warmup; leave it out (recipes with warmup: stream)",
        ),
        ("context: 64", "context: 64, warmup: 8, recipe: hf-stride", 6, "recipe hf-stride takes no warmup; leave it out"),
        ("context: 64", "context: 64, stride: 8", 6, "recipe stream takes no stride; leave it out (recipes with stride: hf-stride)"),
        ("context: 64", "context: 64, stride: 65, recipe: hf-stride", 6, "stride 65 leaves tokens out between windows: context is 64"),
        ("context: 64", "context: 64, stride: 0, recipe: hf-stride", 6, "stride must be a whole number of tokens, 1 or more, got 0"),
        ("context: 64", "context: 64, chunk: 0", 6, "chunk must be a whole number of tokens, 1 or more, got 0"),
        ("context: 64", "context: 64, recipe: gtpq", 6, "unknown recipe 'gtpq'; did you mean 'gptq'?"),
        (
            "context: 64",
            "context: 64, protocol: deployed",
            6,
            "unknown protocol 'deployed'; did you mean 'deploy'? (known: deploy, strict)",
        ),
        ("context: 64", "context: 64, protocol: deploy, chunk: 64", 6, "chunk 64 is the exact prefill in protocol deploy and the whole"),
        (
            "context: 64",
            "context: 64, recipe: steam",
            6,
            "unknown recipe 'steam'; did you mean 'stream'? (known: gptq, hf-stride, llamacpp, stream)",
        ),
        ("context: 64", "contxt: 64", 6, "unknown key 'contxt'; did you mean 'context'?"),
        ("perplexity: {context: 64, tokens: 128}", "perplexty: {}", 6, "unknown task 'perplexty'; did you mean 'perplexity'?"),
        ("perplexity: {context: 64, tokens: 128}", "perplexity: 64", 6, "perplexity takes a mapping of parameters, got 64"),
        ("perplexity: {context: 64, tokens: 128}", "perplexity", 6, "a task is one key with its parameters"),
    ],
)
def test_one_mistake_is_one_line(suite, old: str, new: str, line: int, what: str) -> None:
    path = suite(changed(old, new))
    found = problems(path)
    assert found[0].startswith(f"{path}:{line}: {what}")
    assert len(found) == 1


@pytest.mark.parametrize(
    ("gate", "what"),
    [
        ("{schemes: q9, metric: dppl, limit: 1}", "'q9' matches no scheme of this suite (q8_0)"),
        ("{schemes: q8_0, metric: dpp, limit: 1}", "unknown metric 'dpp'; did you mean 'dppl'?"),
        ("{schemes: q8_0, metric: dppl}", "limit is missing: a number, 0 or more"),
        ("{schemes: q8_0, metric: dppl, limit: -1}", "limit must be a number, 0 or more, got -1"),
        (
            "{schemes: q8_0, metric: top1, limit: 99}",
            "top1 is a share from 0 to 1, and the limit 99 is more than all of it; write 0.99 for 99 %",
        ),
        ("{schemes: q8_0, metric: dppl, limit: 1, sided: both}", "unknown sided 'both' (known: one, two)"),
        ("{schemes: q8_0, metric: dppl, limit: 1, excpect: fail}", "unknown key 'excpect'; did you mean 'expect'?"),
        ("q8_0", "a gate is a mapping {schemes: …, metric: …, limit: …}, got 'q8_0'"),
    ],
)
def test_gates_are_checked(suite, gate: str, what: str) -> None:
    path = suite(f"{GOOD}gates:\n  - {gate}\n")
    (line,) = problems(path)
    assert line.startswith(f"{path}:8: {what}")


def test_numbers_may_be_written_as_people_write_them(suite) -> None:
    text = changed("{context: 64, tokens: 128}", '{context: ["1K", 2_048, 0512], tokens: 32k}')
    (found,) = load([suite(f"{text}gates:\n  - {{schemes: 'q8*', metric: dppl, limit: 1e-2}}\n")])
    ((_, task),) = found.tasks
    assert (task.context, task.tokens) == ((1024, 2048, 512), 32768)
    assert found.gates[0].limit == 0.01
    assert found.settings.name == "suite"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (f"{GOOD}model: other\n", 7, "the key 'model' is given twice, first on line 1"),
        (f"{GOOD}1: x\n", 7, "keys are words, got '1'"),
        (f"{GOOD}? [a]\n: x\n", 7, "keys are words, got a list or a mapping"),
        (changed("smollm2", "&m smollm2"), 1, "the anchor &m is not supported"),
        (changed("python-docs", "!!python/object/apply:os.system [ls]"), 2, "the tag !!python/object/apply:os.system is not supported"),
        (changed("python-docs", "!local x"), 2, "the tag !local is not supported"),
        (f"{GOOD}<<: {{dtype: x}}\n", 7, "unknown key '<<'"),
        (f"{GOOD}gates: {'[' * 10_000}", 7, "not valid YAML: nested more than 30 deep"),
        (f"{GOOD}---\n{GOOD}", 7, "a second document begins here"),
        (f"{GOOD}gates:\n\t- x\n", 8, "not valid YAML: found character '\\t'"),
        (f"{GOOD}dtype: 'x\n", 8, "not valid YAML: found unexpected end of stream"),
        (f"{GOOD}timeout: {'9' * 10_000}\n", 7, "timeout must be"),
        (f"{GOOD}timeout: 2024-99-99\n", 7, "timeout must be"),
        (f"{GOOD}timeout: !!int x\n", 7, "the tag !!int is not supported"),
        ("- model\n", 1, "a suite is a mapping of keys"),
        ("just words\n", 1, "a suite is a mapping of keys"),
        ("{}\n", 1, "model is missing"),
        (b"model: x\ncorpus: \xff\xfe\n", 2, "this is not text in UTF-8"),
        (b"model: x\ncorpus: a\x00b\n", 2, "a control character ('\\x00') has no place in a suite"),
        ("", None, "the file is empty"),
        ("# nothing\n", None, "the file is empty"),
        ("x" * 1_000_001, None, "the file is larger than 1000 kB"),
    ],
)
def test_poison_is_refused_in_one_line(suite, text: str | bytes, line: int | None, what: str) -> None:
    path = suite(text)
    found = problems(path)
    assert found[0].startswith(f"{path}:{line}: {what}" if line else f"{path}: {what}")
    assert all(len(problem) < 1200 for problem in found)


def test_a_bomb_of_aliases_expands_to_nothing(suite) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
    found = problems(suite(f"a0: &a0 x\n{levels}{GOOD}"))
    assert "the anchor &a0 is not supported" in found[0]
    assert found[-1].endswith("more")
    assert len(found) == 31


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    (folder,) = problems(tmp_path)
    assert folder.startswith(f"{tmp_path}: this is not a file but a folder")
    typed = tmp_path / "quickstrat.yaml"
    assert problems(typed) == [f"{typed}: there is no such file; did you mean '{tmp_path / 'quickstart.yaml'}'?"]
    assert problems(Path("/dev/zero")) == ["/dev/zero: this is not a file"]


def test_paths_are_reported_as_typed(suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite(changed("q8_0", "q9"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape("././suite.yaml:4: unknown scheme 'q9'")):
        load(["././suite.yaml"])


def test_options_take_the_place_of_the_files_values(suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = suite(changed("model: smollm2-135m-instruct-q4_1", "model: ./not-here-yet"))
    (tmp_path / "notes.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    (found,) = load([path], Overrides(model="smollm2-135m-instruct-q4_1", corpus="notes.txt", dtype="float64"))
    assert found.settings.model == ("smollm2-135m-instruct-q4_1",)
    assert found.settings.corpus == {"name": "file", "path": str(tmp_path / "notes.txt")}
    assert found.settings.dtype == "float64"


def test_a_wrong_option_is_reported_in_place_of_the_line(suite) -> None:
    path = suite(GOOD)
    found = problems(path, path, model="./x", dtype="flot32", bypass="both", device="0", kernel="x")
    assert [line.partition(":")[0] for line in found] == ["--device", "--dtype", "--model", "--kernel", "--bypass"]


def test_a_model_that_is_too_small_for_the_suite_is_the_options_mistake(suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text('{"max_position_embeddings": 32}')
    monkeypatch.chdir(tmp_path)
    (line,) = problems(suite(GOOD), model="small")
    assert line.startswith("--model: context 64 is longer than the 32 positions of")


def test_a_damaged_model_folder_is_a_line(suite, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("[")
    path = suite(changed("smollm2-135m-instruct-q4_1", "small"))
    (line,) = problems(path)
    assert line.startswith(f"{path}:1: the config.json of model 'small' cannot be read: ")


def test_every_shipped_suite_loads_and_opens_with_its_question_and_command() -> None:
    paths = sorted(SUITES.glob("*.yaml"))
    for path, found in zip(paths, load(paths), strict=True):
        head = re.match(r"(#.*\n)+", path.read_text())
        assert found.settings.name == path.stem
        assert head
        assert "?" in head[0]
        assert f"tqbench run suites/{path.name}" in head[0]


WEIRD = (
    *("[]", "{}", "null", "~", "true", "-1", "1e999", "0512", ".nan", "8k", "9" * 40),
    *("!!python/object:x", "&a", "*a", "<<", "'", "[[[[", "?", "-", "|", ">"),
)
CHARACTERS = ":{}[]&*!|>'\"\t-#%@\x00\x1b\u2028é\n ,?<=~`\\0a"


def mutated(text: str, rng: random.Random) -> str:
    """The text after one to four small accidents."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        at, i = rng.randrange(len(text) + 1), rng.randrange(len(lines))
        words = list(re.finditer(r"[\w./-]+", text))
        kind = rng.randrange(7)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, rng.choice(lines))
        elif kind == 2:
            lines[i] = " " * rng.randrange(5) + lines[i]
        text = "\n".join(lines) or "x"
        if kind == 3:
            text = text[:at] + rng.choice(CHARACTERS) + text[at:]
        elif kind == 4:
            text = text[:at] + text[at + rng.randint(1, 20) :]
        elif kind == 5 and words:
            word = rng.choice(words)
            text = text[: word.start()] + rng.choice(WEIRD) + text[word.end() :]
        elif kind == 6 and words:
            one, other = rng.choice(words), rng.choice(words)
            text = text[: one.start()] + other[0] + text[one.end() :]
    return text


def test_no_accident_in_a_file_is_a_traceback(suite) -> None:
    text = re.sub(r"^#.*\n", "", (SUITES / "quickstart.yaml").read_text(), flags=re.MULTILINE)
    text += "gates:\n  - {schemes: 'q8*', metric: dppl, limit: 0.1, sided: two, expect: pass, required: true}\n"
    refused: list[str] = []
    for seed in range(300):
        path = suite(mutated(text, random.Random(seed)).encode(errors="replace"))  # noqa: S311 - nobody guesses these
        try:
            for found in load([path]):
                plan(found)
        except ConfigError as error:
            refused += error.problems
    assert len(refused) > 150
    assert [line for line in refused if not re.match(rf"{re.escape(str(path))}(:\d+)?: \S", line)] == []


SPEED_MISTAKES = {
    "decode: {depth: -1}": "depth must be a whole number of tokens from 0",
    "decode: {depth: [512, 512]}": "512 is in the list already",
    "decode: {depth: 9k}": "depth 9216 is longer than the 8192 positions",
    "decode: {context: 512}": "unknown key 'context'",
    "decode: {new: 0}": "new must be a whole number of tokens, 1 or more",
    "decode: {repetitions: 0}": "repetitions must be a whole number from 1 to 1000",
    "prefill: {context: 512, chunk: 1k}": "chunk 1024 is longer than the window: context is 512",
    "prefill: {protocol: loose}": "unknown protocol 'loose'",
    "memory: {context: 8}": "context must be a whole number of tokens from 16",
    "storage: {entropy: lzma}": "unknown entropy 'lzma'",
    "storage: {entropy: zstd, level: 23}": "level of coder 'zstd' must be from 1 to 22, got 23",
    "storage: {entropy: ans, level: 2}": "coder 'ans' has no levels",
    "storage: {level: fast}": "level must be a whole number, or nothing for the coder's own",
    "decoed: {}": "unknown task 'decoed'",
}


@pytest.mark.parametrize("task", SPEED_MISTAKES)
def test_mistakes_in_speed_tasks_are_told(suite, task: str) -> None:
    (found,) = problems(suite(changed("perplexity: {context: 64, tokens: 128}", task)))
    assert re.match(r".*suite.yaml:6: ", found)
    assert SPEED_MISTAKES[task] in found


def test_a_gate_needs_the_task_that_measures_its_metric(suite) -> None:
    text = f"{GOOD}gates:\n  - {{schemes: q8_0, metric: decode_ratio, limit: 1}}\n"
    (found,) = problems(suite(text))
    assert "decode_ratio comes from the task decode, which this suite does not have" in found
    (loaded,) = load([suite(text.replace("  - perplexity", "  - decode: {}\n  - perplexity"))])
    assert loaded.gates[0].better == "high"


def test_every_metric_of_a_gate_is_known_to_its_schema() -> None:
    from typing import get_args

    from tqbench.core.gate import TASK_OF
    from tqbench.suite.schema import Metric

    assert set(get_args(Metric)) == set(TASK_OF)
