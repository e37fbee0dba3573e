"""Where a model can come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal_server.preparation.environment import ExportEnvironment
from shoal_server.preparation.errors import SourceNotFound, Unsupported
from shoal_server.preparation.progress import Progress
from shoal_server.registry.manifest import VERSION_FILE

ONNX_FILES = ("onnx/model.onnx", "model.onnx")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What fetching may use.

    Attributes:
        scratch: An empty folder on the repository's file system.
        environment: The export environment, made or not.
    """

    scratch: Path
    environment: ExportEnvironment
    progress: Progress


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model's files on this machine, as their authors made them.

    Attributes:
        folder: Where they lie. Read only.
        kind: `hub`, `pypi` or `local`.
        location: Hub id, package name, or the folder's name.
        revision: Commit of the hub repository or version of the package.
    """

    folder: Path
    kind: str
    location: str
    revision: str = ""

    def onnx_file(self, transformer: str) -> Path | None:
        """The ONNX file that the authors made, if they did."""
        candidates = [
            self.folder / part / name for part in (".", transformer) for name in ONNX_FILES
        ]
        return next((path for path in candidates if path.is_file()), None)

    def has_model(self, transformer: str) -> bool:
        """Whether there is a graph, or weights, such as they may be."""
        weights = ("*.safetensors", "*.safetensors.index.json", "*.bin")
        folder = self.folder / transformer
        return self.onnx_file(transformer) is not None or any(
            any(folder.glob(pattern)) for pattern in weights
        )

    def has_safetensors(self, transformer: str) -> bool:
        """Whether there are weights that PyTorch can load without unpickling."""
        folder = self.folder / transformer
        names = ("model.safetensors", "model.safetensors.index.json")
        return any((folder / name).is_file() for name in names)


class ModelSource(Protocol):
    """One place a model can be had from."""

    @property
    def suggested_name(self) -> str:
        """The model's name where the user gives none; may not be a valid one."""

    @property
    def reference(self) -> str:
        """What `model.toml` records: pulling it again fetches the same; "" for nothing."""

    def made(self, kind: str, location: str) -> bool:
        """Whether a version with this origin came from here."""

    def at_newest(self) -> tuple[ModelSource, str]:
        """The source pinned to what it is now, and that revision; blocks on the network.

        Raises:
            PreparationError: It does not answer, or has no revisions to tell apart.
        """

    def fetch(self, workshop: Workshop) -> Fetched:
        """Bring the files to this machine.

        Raises:
            PreparationError: They can not be had; the text says why.
            OSError: The disk refuses.
        """


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder on this machine."""

    folder: Path

    @property
    def suggested_name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def reference(self) -> str:
        """Nothing: model.toml is committed, and a path of this machine helps nobody else."""
        return ""

    def made(self, kind: str, location: str) -> bool:
        """Whether a version came from a folder of this name."""
        return (kind, location) == ("local", self.suggested_name)

    def at_newest(self) -> tuple[ModelSource, str]:
        """Of a folder nobody can tell.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"{self.folder} is a folder: whether it is newer can not be told")

    def fetch(self, workshop: Workshop) -> Fetched:
        """Use the folder where it is.

        Raises:
            SourceNotFound: There is no such folder, or not the authors' files in it.
        """
        if not self.folder.is_dir():
            raise SourceNotFound(f"there is no folder {self.folder}")
        if (self.folder / VERSION_FILE).is_file():
            raise SourceNotFound(
                f"{self.folder} is a prepared version already (it has {VERSION_FILE}): "
                "copy it to NAME/VERSION in the model repository"
            )
        return Fetched(self.folder, "local", self.suggested_name)
