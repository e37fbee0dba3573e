"""Models whose files are not what they should be: said plainly, remembered, mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import model_control_pb2 as control_pb
from tests.running import RunningServer
from tests.server.api.calls import Connection, Refusal, eventually, refusal, unharmed
from tests.tiny_model import TinyModel, make_tiny_model

LONG_S = 1000.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_tiny_model(root)
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[RunningServer]:
    """Remembers a failed load for as long as the tests last."""
    with RunningServer(
        model_dir=root, default_model="tiny", load_backoff_s=LONG_S, load_backoff_max_s=LONG_S
    ) as server:
        yield server


@pytest.fixture(scope="module")
def tiny(running: RunningServer) -> Iterator[Connection]:
    with unharmed(running) as connection:
        yield connection


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def failed_loads(running: RunningServer, model: str) -> float:
    return running.metric("shoal_model_loads_total", model=model, result="failed")


def assert_load_failed(found: Refusal, root: Path, *named: str) -> None:
    """FAILED_PRECONDITION that names what is wrong, and nothing of the machine."""
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert found.domain == "shoal"
    assert [word for word in named if word not in found.message] == []
    assert str(root) not in found.message
    assert "/" not in found.message


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # name: (what happens to the version's folder, the file to be named, the reason)
    "changed byte of the graph": (
        lambda folder: flip_a_byte(folder / "model.onnx"), "model.onnx", "MODEL_FILE_CORRUPT",
    ),
    "changed byte of the tokenizer": (
        lambda folder: flip_a_byte(folder / "tokenizer.json"),
        "tokenizer.json", "MODEL_FILE_CORRUPT",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "tokenizer.json", "MODEL_FILE_CORRUPT",
    ),
    "no graph": (
        lambda folder: (folder / "model.onnx").unlink(), "model.onnx", "MODEL_FILE_CORRUPT",
    ),
    "empty graph": (
        lambda folder: (folder / "model.onnx").write_bytes(b""),
        "model.onnx", "MODEL_FILE_CORRUPT",
    ),
    "folder in a file's place": (
        lambda folder: _replace_by_folder(folder / "tokenizer.json"),
        "tokenizer.json", "MODEL_FILE_CORRUPT",
    ),
    "manifest that is no TOML": (
        lambda folder: (folder / "version.toml").write_text("dimensions = "),
        "version.toml", "MODEL_FILE_CORRUPT",
    ),
    "manifest that lacks a field": (
        lambda folder: _drop_line(folder / "version.toml", "max_tokens"),
        "version.toml", "MODEL_FILE_CORRUPT",
    ),
    "operator's manifest that is no TOML": (
        lambda folder: (folder.parent / "model.toml").write_text("x = "),
        "model.toml", "MODEL_LOAD_FAILED",
    ),
}  # fmt: skip


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _drop_line(path: Path, start: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(start)))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(tiny: Connection, root: Path, damage: str) -> None:
    """FAILED_PRECONDITION with the file's name and no path, and others go on serving."""
    name = "damaged-" + "".join(filter(str.isalpha, damage))
    broken = make_tiny_model(root, name)
    harm, file, reason = DAMAGES[damage]
    harm(broken.folder)

    found = refusal(lambda: tiny.embed("red", model=name))

    assert_load_failed(found, root, file, name)
    assert found.reason == reason
    assert tiny.embed("red").dimensions == 8
    described = tiny.models()[name]
    assert described.state == control_pb.MODEL_STATE_ERROR
    assert file in described.state_reason
    assert str(root) not in described.state_reason


UNREADABLE = {
    # What the manifest's checksums can not tell: the files are as they were prepared.
    "graph that is none": ("model.onnx", b"no graph"),
    "tokenizer that is none": ("tokenizer.json", b'{"version": "1.0"}'),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_files_the_runtime_refuses(
    tiny: Connection, running: RunningServer, root: Path, what: str
) -> None:
    """What the runtime says of a file reaches the caller in brief, without paths."""
    name = "refused-" + what.replace(" ", "-")
    file, data = UNREADABLE[what]
    make_tiny_model(root, name, replaced={file: data})

    found = refusal(lambda: tiny.embed("red", model=name))

    assert_load_failed(found, root, name)
    assert found.reason == "MODEL_LOAD_FAILED"


def test_model_without_a_version_is_not_found(tiny: Connection, root: Path) -> None:
    """A manifest alone is no model to serve: the message says what to do."""
    (root / "described").mkdir()
    (root / "described" / "model.toml").write_text('description = "not yet"\n')

    found = refusal(lambda: tiny.embed("red", model="described"))

    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert tiny.models()["described"].state == control_pb.MODEL_STATE_REGISTERED


def test_failed_load_is_shared_by_its_waiters(
    tiny: Connection, running: RunningServer, root: Path
) -> None:
    """However many wait for a model that can not be loaded, it is tried once."""
    broken = make_tiny_model(root, "shared-failure")
    flip_a_byte(broken.folder / "model.onnx")

    pending = [tiny.start("red", model="shared-failure") for _ in range(32)]

    for future in pending:
        assert_load_failed(refusal(future.result), root, "model.onnx")
    assert failed_loads(running, "shared-failure") == 1


def test_failed_load_is_remembered_until_an_explicit_load(
    tiny: Connection, running: RunningServer, root: Path
) -> None:
    """Requests do not try again, and are told when they may; LoadModel does."""
    broken = make_tiny_model(root, "mended")
    whole = (broken.folder / "model.onnx").read_bytes()
    flip_a_byte(broken.folder / "model.onnx")
    first = refusal(lambda: tiny.embed("red", model="mended"))
    (broken.folder / "model.onnx").write_bytes(whole)

    second = refusal(lambda: tiny.embed("red", model="mended"))

    assert_load_failed(second, root, "model.onnx")
    assert second.reason == first.reason
    assert second.retry_s is not None
    assert LONG_S - 60 < second.retry_s <= LONG_S
    assert failed_loads(running, "mended") == 1
    assert tiny.load("mended").state == control_pb.MODEL_STATE_READY
    assert tiny.embed("red", model="mended").dimensions == 8
    assert tiny.models()["mended"].state_reason == ""


def test_explicit_load_of_a_broken_model_says_what_is_wrong(tiny: Connection, root: Path) -> None:
    """LoadModel fails as a request does, each time anew."""
    broken = make_tiny_model(root, "still-broken")
    flip_a_byte(broken.folder / "tokenizer.json")

    for _ in range(2):
        assert_load_failed(refusal(lambda: tiny.load("still-broken")), root, "tokenizer.json")


def test_failed_load_is_tried_again_after_a_while(model: TinyModel) -> None:
    """The back-off ends by itself: a mended model serves without anybody's help."""
    broken = make_tiny_model(model.root, "flaky")
    whole = (broken.folder / "model.onnx").read_bytes()
    flip_a_byte(broken.folder / "model.onnx")
    with (
        RunningServer(model_dir=model.root, default_model="tiny", load_backoff_s=0.05) as running,
        unharmed(running) as connection,
    ):
        refusal(lambda: connection.embed("red", model="flaky"))
        (broken.folder / "model.onnx").write_bytes(whole)

        def serves() -> bool:
            future = connection.start("red", model="flaky")
            return future.exception() is None

        eventually(serves, "the mended model serves")


def test_tokenize_fails_as_embed_does(tiny: Connection, root: Path) -> None:
    """Tokenizing takes the model's files too."""
    broken = make_tiny_model(root, "no-tokens")
    (broken.folder / "tokenizer.json").unlink()

    found = refusal(
        lambda: tiny.embedding.Tokenize(pb.TokenizeRequest(model="no-tokens", texts=["red"]))
    )

    assert_load_failed(found, root, "tokenizer.json")


def test_link_out_of_the_repository_is_not_followed(
    tiny: Connection, root: Path, tmp_path: Path
) -> None:
    """A model folder that is a link to elsewhere is no model."""
    elsewhere = make_tiny_model(tmp_path, "elsewhere")
    (root / "linked").symlink_to(elsewhere.folder.parent)

    found = refusal(lambda: tiny.embed("red", model="linked"))

    assert found.code is grpc.StatusCode.NOT_FOUND
