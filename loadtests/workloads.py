"""The texts that are sent: real prose that every Python installation carries.

The docstrings of a fixed list of the standard library's modules are cut into
paragraphs of prose, and texts of wanted token counts are cut out of those. The same
Python version and the same tokenizer give the same texts; other versions of Python
word some docstrings differently, so reports carry each workload's fingerprint.

Lengths are stratified: every block of `BLOCK` texts holds the whole distribution, in
shuffled order. A few seconds of load then have the mean length of the workload, and
two windows can be compared that did not see the same texts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import math
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 32

CountTokens = Callable[[Sequence[str]], list[int]]
"""Token counts of texts, special tokens included."""

_MODULES = (
    *("argparse", "asyncio", "bdb", "calendar", "cmd", "codecs", "collections", "concurrent"),
    *("configparser", "contextlib", "csv", "dataclasses", "decimal", "difflib", "doctest"),
    *("email", "enum", "fractions", "ftplib", "functools", "gettext", "heapq", "html", "http"),
    *("importlib", "inspect", "ipaddress", "json", "locale", "logging", "mailbox", "mimetypes"),
    *("multiprocessing", "optparse", "os", "pathlib", "pickle", "pickletools", "pprint"),
    *("pydoc", "queue", "random", "re", "sched", "selectors", "shelve", "shlex", "shutil"),
    *("smtplib", "socket", "socketserver", "sqlite3", "ssl", "statistics", "string"),
    *("subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize"),
    *("trace", "traceback", "turtle", "typing", "unittest", "urllib", "uuid", "warnings"),
    *("weakref", "webbrowser", "xml", "xmlrpc", "zipfile"),
)
_MIN_PARAGRAPH_WORDS = 5
_MIN_PROSE_SHARE = 0.75
_PROSE_WORD = re.compile(r"[(\"']*[A-Za-z][A-Za-z'-]*[)\"'.,;:!?]*")


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """How long the texts of a workload are, in tokens, special tokens included."""

    name: str
    shortest: int
    longest: int
    log_uniform: bool
    texts: int
    """A multiple of BLOCK."""

    def length_at(self, quantile: float) -> int:
        """The length below which `quantile` of the texts lie."""
        low, high = self.shortest, self.longest + 1
        if self.log_uniform:
            return int(math.exp(math.log(low) + quantile * math.log(high / low)))
        return int(low + quantile * (high - low))


SPECS = {
    spec.name: spec
    for spec in (
        WorkloadSpec("short", 6, 20, log_uniform=False, texts=2048),
        WorkloadSpec("medium", 40, 100, log_uniform=False, texts=512),
        WorkloadSpec("mixed", 6, 256, log_uniform=True, texts=1024),
    )
}


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts and how long they are."""

    name: str
    texts: tuple[str, ...]
    token_counts: tuple[int, ...]

    @property
    def mean_tokens(self) -> float:
        """Mean length of a text."""
        return sum(self.token_counts) / len(self.token_counts)

    @property
    def fingerprint(self) -> str:
        """Equal for equal texts: figures of different fingerprints do not compare."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:12]


def make_workload(spec: WorkloadSpec, count_tokens: CountTokens) -> Workload:
    """Cut texts of the lengths that `spec` wants.

    Args:
        spec: How many texts, and how long.
        count_tokens: The model's tokenizer.
    """
    rng = random.Random(spec.name)
    words, starts = _prose_words()
    tokens_of = _tokens_by_word(words, count_tokens)
    specials = count_tokens([""])[0]
    texts = []
    for wanted in _lengths(spec, rng):
        text = ""
        while not text:
            start = starts[int(rng.random() * len(starts))]
            budget = wanted - specials
            end = start
            while end < len(words) and tokens_of[words[end]] <= budget:
                budget -= tokens_of[words[end]]
                end += 1
            if wanted - budget >= spec.shortest:
                text = " ".join(words[start:end])
        texts.append(text)
    counts = count_tokens(texts)
    if min(counts) < spec.shortest or max(counts) > spec.longest:
        raise ValueError(
            f"{spec.name}: {min(counts)} to {max(counts)} tokens; this tokenizer "
            "does not count word by word"
        )
    return Workload(spec.name, tuple(texts), tuple(counts))


def _lengths(spec: WorkloadSpec, rng: random.Random) -> Iterator[int]:
    """Wanted lengths, block by block. Uses `rng.random` only: the rest may change."""
    for _ in range(spec.texts // BLOCK):
        quantiles = [(stratum + rng.random()) / BLOCK for stratum in range(BLOCK)]
        order = sorted(range(BLOCK), key=[rng.random() for _ in range(BLOCK)].__getitem__)
        yield from (spec.length_at(quantiles[place]) for place in order)


def _tokens_by_word(words: Sequence[str], count_tokens: CountTokens) -> dict[str, int]:
    unique = sorted(set(words))
    specials = count_tokens([""])[0]
    counts = count_tokens(unique)
    return {word: count - specials for word, count in zip(unique, counts, strict=True)}


@functools.cache
def _prose_words() -> tuple[list[str], list[int]]:
    """All words of the prose, and where the paragraphs start."""
    words: list[str] = []
    starts: list[int] = []
    for paragraph in _paragraphs():
        starts.append(len(words))
        words.extend(paragraph.split())
    return words, starts


def _paragraphs() -> Iterator[str]:
    """Paragraphs of prose, each once, in the order of the modules' names."""
    seen = set()
    for path in _source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(paragraph.split())
                    if text not in seen and _is_prose(text):
                        seen.add(text)
                        yield text


def _source_files() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in _MODULES:
        package = root / name
        if package.is_dir():
            yield from sorted(each for each in package.rglob("*.py") if "test" not in each.parts)
        elif package.with_suffix(".py").is_file():
            yield package.with_suffix(".py")


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) < _MIN_PARAGRAPH_WORDS or ">>>" in text or not text.endswith((".", "!", "?")):
        return False
    return sum(map(bool, map(_PROSE_WORD.fullmatch, words))) >= _MIN_PROSE_SHARE * len(words)
