"""Graphs of a version in other precisions: which there are, and which is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shoal_server.errors import FailedPrecondition, ModelFileCorrupt
from shoal_server.registry.manifest import Precision, Serving
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from tests.tiny_model import TinyModel, add_tiny_variant, make_tiny_model


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    """A model with an int8 variant."""
    model = make_tiny_model(tmp_path / "models")
    add_tiny_variant(model)
    return model


@pytest.fixture
def repository(tiny: TinyModel) -> ModelRepository:
    return ModelRepository(tiny.root)


async def resolved(
    repository: ModelRepository,
    precision: Precision = "fp32",
    *,
    required: Precision | None = None,
) -> ModelVersion:
    """As a server of a default precision, and a model of its own, would serve it."""
    if required is not None:
        path = repository.model_folder("tiny") / "model.toml"
        manifest = repository.model_manifest("tiny")
        serving = Serving(precision=required)
        path.write_text(manifest.model_copy(update={"serving": serving}).to_toml())
    return await Registry(repository, "tiny", precision).resolve("tiny")


def test_variants_are_listed(repository: ModelRepository, tiny: TinyModel) -> None:
    """Those that are whole, of a known precision, and inside of the repository."""
    folder = tiny.folder / "variants"
    (folder / "fp16").mkdir()
    (folder / "int4").mkdir()
    (folder / "int4" / "variant.toml").touch()
    assert repository.variants("tiny", "1") == ["int8"]
    (folder / "int8").rename(tiny.root.parent / "outside")
    (folder / "int8").symlink_to(tiny.root.parent / "outside")
    assert repository.variants("tiny", "1") == []


def test_a_version_without_variants_has_none(tmp_path: Path) -> None:
    """That is no error."""
    make_tiny_model(tmp_path)
    assert ModelRepository(tmp_path).variants("tiny", "1") == []


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_a_damaged_variant_is_told(repository: ModelRepository, tiny: TinyModel, harm: str) -> None:
    """By the file's name; the version itself is whole."""
    path = tiny.folder / "variants" / "int8" / "model.onnx"
    repository.verify_variant("tiny", "1", "int8")
    if harm == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        path.unlink()
    with pytest.raises(ModelFileCorrupt, match=r"tiny@1: variants/int8/model\.onnx"):
        repository.verify_variant("tiny", "1", "int8")
    repository.verify("tiny", "1")


@pytest.mark.parametrize("text", ["", "precision = 'int8'", "cosine = ["])
def test_a_manifest_that_can_not_be_read_is_told(
    repository: ModelRepository, tiny: TinyModel, text: str
) -> None:
    """By its name."""
    (tiny.folder / "variants" / "int8" / "variant.toml").write_text(text)
    with pytest.raises(ModelFileCorrupt, match=r"variant\.toml"):
        repository.variant_manifest("tiny", "1", "int8")


def test_a_variant_in_the_wrong_folder_is_told(
    repository: ModelRepository, tiny: TinyModel
) -> None:
    """The folder and the manifest must agree on the precision."""
    (tiny.folder / "variants" / "int8").rename(tiny.folder / "variants" / "fp16")
    with pytest.raises(ModelFileCorrupt, match="is of int8, its folder is of fp16"):
        repository.variant_manifest("tiny", "1", "fp16")


def test_sizes_do_not_mix(repository: ModelRepository, tiny: TinyModel, tmp_path: Path) -> None:
    """A version's size is that of its own files, a variant's that of its own."""
    plain = make_tiny_model(tmp_path / "plain")
    assert repository.size_bytes("tiny", "1") == ModelRepository(plain.root).size_bytes("tiny", "1")
    files = (tiny.folder / "variants" / "int8").iterdir()
    expected = sum(path.stat().st_size for path in files)
    assert repository.variant_size_bytes("tiny", "1", "int8") == expected


def test_removing_a_version_removes_its_variants(
    repository: ModelRepository, tiny: TinyModel
) -> None:
    """They lie inside of it."""
    repository.remove("tiny", "1")
    assert not tiny.folder.exists()


@pytest.mark.parametrize(
    ("server", "required", "served"),
    [
        ("fp32", None, "fp32"),
        ("int8", None, "int8"),
        ("fp16", None, "fp32"),  # there is none: what was prepared
        ("fp32", "int8", "int8"),
        ("int8", "fp32", "fp32"),
    ],
)
async def test_which_graph_is_served(
    repository: ModelRepository, server: Precision, required: Precision | None, served: str
) -> None:
    """The model's own precision, else the server's, else what was prepared."""
    version = await resolved(repository, server, required=required)
    assert version.chosen.precision == served
    folder = "" if served == "fp32" else "variants/int8/"
    assert version.graph == version.folder / f"{folder}model.onnx"
    assert version.files.keys() == {f"{folder}model.onnx", "tokenizer.json"}


@pytest.mark.parametrize(
    ("server", "gpu", "device", "served"),
    [
        ("auto", True, None, "fp16"),
        ("auto", True, "auto", "fp16"),
        ("auto", True, "cpu", "fp32"),
        ("auto", False, None, "fp32"),
        ("auto", False, "cuda:1", "fp16"),
        ("fp16", True, None, "fp16"),
        ("fp16", False, None, "fp32"),  # the CPU has no use for it
        ("fp16", True, "cpu", "fp32"),
        ("int8", True, None, "int8"),
    ],
)
async def test_fp16_is_for_gpus(
    repository: ModelRepository,
    tiny: TinyModel,
    server: Precision,
    gpu: bool,
    device: str | None,
    served: str,
) -> None:
    """The server's wish holds where the model runs on one, its own wish for a device included."""
    add_tiny_variant(tiny, "fp16")
    manifest = repository.model_manifest("tiny").model_copy(
        update={"serving": Serving(device=device)}
    )
    (repository.model_folder("tiny") / "model.toml").write_text(manifest.to_toml())
    version = await Registry(repository, "tiny", server, gpu=gpu).resolve("tiny")
    assert version.chosen.precision == served


async def test_a_model_without_fp16_is_served_as_it_is(repository: ModelRepository) -> None:
    """On a GPU too, without a word: nobody asked for fp16."""
    with capture_logs() as lines:
        version = await Registry(repository, "tiny", "auto", gpu=True).resolve("tiny")
    assert (version.chosen.precision, lines) == ("fp32", [])


async def test_a_required_precision_must_be_there(repository: ModelRepository) -> None:
    """It is not served in another; the error says how to make it."""
    (repository.version_folder("tiny", "1") / "variants" / "int8" / "variant.toml").unlink()
    missing: tuple[Precision, ...] = ("int8", "fp16")
    for precision in missing:
        how = f"shoal models quantize tiny@1 --precision {precision}"
        with pytest.raises(FailedPrecondition, match=how):
            await resolved(repository, required=precision)


async def test_falling_back_is_logged_once(repository: ModelRepository) -> None:
    """The server's precision is a wish: where it can not be had, one line says so."""
    registry = Registry(repository, "tiny", "fp16")
    with capture_logs() as lines:
        await registry.resolve("tiny")
        await registry.resolve("tiny")
    assert [(line["event"], line["wanted"], line["used"]) for line in lines] == [
        ("precision_fallback", "fp16", "fp32")
    ]


async def test_what_was_wished_for_is_not_logged(repository: ModelRepository) -> None:
    """Neither what the server, nor what the model asks for."""
    with capture_logs() as lines:
        await resolved(repository)
        await resolved(repository, "int8")
        await resolved(repository, "int8", required="fp32")
    assert lines == []


async def test_a_session_is_charged_for_what_it_reads(repository: ModelRepository) -> None:
    """The variant's files and the tokenizer, not the graph that it replaces."""
    version = await resolved(repository, "int8")
    tokenizer_bytes = (version.folder / "tokenizer.json").stat().st_size
    variant_bytes = repository.variant_size_bytes("tiny", "1", "int8")
    assert version.file_bytes == tokenizer_bytes + variant_bytes
