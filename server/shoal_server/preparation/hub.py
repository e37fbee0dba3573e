"""Models of a Hugging Face hub, through huggingface_hub and its cache.

The library honours HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE, and goes on
where an interrupted download stopped. It is told which files to fetch: never pickles,
never code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NoReturn, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its library's
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from shoal_server.preparation.errors import HubAccessDenied, HubUnavailable, SourceNotFound
from shoal_server.preparation.sources import ONNX_FILES, Fetched, Workshop

_T = TypeVar("_T")

_CARD = (
    "README.md",
    "modules.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
)
# In the folder of the transformer, which is the repository itself or, in old ones, 0_….
_TRANSFORMER = (
    "config.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_SLOW_TOKENIZER = ("added_tokens.json", "merges.txt", "vocab.json", "vocab.txt", "*.model")
_ONNX = tuple(f"{name}*" for name in ONNX_FILES)  # and model.onnx_data beside it
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub.

    Attributes:
        repository: `org/name`.
        revision: Branch, tag or commit; None for the main branch.
        timeout_s: For how long the hub may be silent before it counts as unreachable.
    """

    repository: str
    revision: str | None = None
    timeout_s: float = 30.0

    @property
    def suggested_name(self) -> str:
        """The repository's name without its owner, in lower case."""
        return self.repository.rpartition("/")[2].lower()

    @property
    def reference(self) -> str:
        """The hub id."""
        return self.repository

    def made(self, kind: str, location: str) -> bool:
        """Whether a version came from this repository."""
        return (kind, location) == ("hub", self.repository)

    def at_newest(self) -> tuple[HubSource, str]:
        """The repository at the commit that its revision means now, and that commit.

        Raises:
            SourceNotFound: There is no such repository or revision, or not for this token.
            HubAccessDenied: The repository is not for this token.
            HubUnavailable: The hub does not answer.
        """
        with self._plain_errors():
            commit = within(self.timeout_s, self._commit)
        return replace(self, revision=commit), commit

    def fetch(self, workshop: Workshop) -> Fetched:
        """Download what is needed into the hub's cache, or find it there when offline.

        Weights for PyTorch are fetched where there is no ONNX file, and where the export
        environment is at hand, to compare with.

        Raises:
            SourceNotFound: There is no such repository or revision, or not for this token.
            HubAccessDenied: The repository is gated.
            HubUnavailable: The hub does not answer, and the cache does not have it.
        """
        workshop.progress.step(f"asking the hub for {self.repository}")
        try:
            with self._plain_errors():
                files = within(self.timeout_s, self._files)
                patterns = wanted_files(files, weights=workshop.environment.is_complete())
                return self._download(patterns, workshop)
        except HubUnavailable as error:
            if (cached := self._cached()) is None:
                raise
            workshop.progress.step(f"{error}; taking it from the hub's cache")
            return cached

    def _commit(self) -> str:
        info = HfApi().model_info(self.repository, revision=self.revision, timeout=self.timeout_s)
        if not info.sha:
            raise HubUnavailable(f"the hub does not name a commit of {self.repository}")
        return info.sha

    def _files(self) -> list[str]:
        info = HfApi().model_info(self.repository, revision=self.revision, timeout=self.timeout_s)
        return [file.rfilename for file in info.siblings or []]

    def _download(self, patterns: list[str], workshop: Workshop) -> Fetched:
        workshop.progress.step(f"downloading {self.repository}")
        with workshop.progress.bars() as welcome:
            if not welcome:
                disable_progress_bars()
            download = partial(
                snapshot_download, self.repository, revision=self.revision, allow_patterns=patterns
            )
            # Apart: whoever ends the command waits for none of the files on their way.
            return self._fetched(within(None, download))

    def _cached(self) -> Fetched | None:
        try:
            folder = snapshot_download(
                self.repository,
                revision=self.revision,
                allow_patterns=["config.json"],
                local_files_only=True,
            )
        except (EntryNotFoundError, HFValidationError):
            return None
        fetched = self._fetched(folder)
        is_whole = fetched.onnx_file(".") or fetched.has_safetensors(".")
        return fetched if is_whole else None

    def _fetched(self, folder: str) -> Fetched:
        # A snapshot's folder is named after its commit.
        return Fetched(Path(folder), "hub", self.repository, Path(folder).name)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except GatedRepoError as error:
            raise HubAccessDenied(
                f"{self.repository} is gated: accept its terms on the hub and set HF_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            raise SourceNotFound(
                f"the hub has no repository {self.repository}, or it is private "
                "and HF_TOKEN does not open it"
            ) from error
        except RevisionNotFoundError as error:
            raise SourceNotFound(f"{self.repository} has no revision {self.revision!r}") from error
        except HFValidationError as error:
            raise SourceNotFound(f"{self.repository!r} is not a hub id: {error}") from error
        except OfflineModeIsEnabled as error:
            raise HubUnavailable("the hub is switched off by HF_HUB_OFFLINE") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in {401, 403}:
                raise HubAccessDenied(
                    f"the hub refuses {self.repository} to this token (HTTP {status})"
                ) from error
            raise HubUnavailable(f"the hub answers HTTP {status}") from error
        except (HTTPError, EntryNotFoundError, FileMetadataError) as error:
            raise HubUnavailable(f"the hub does not answer ({type(error).__name__})") from error


def wanted_files(files: Collection[str], *, weights: bool) -> list[str]:
    """Patterns of the files to fetch from a repository.

    Args:
        files: All of the repository's files.
        weights: Whether to fetch weights for PyTorch though there is an ONNX file.
    """
    names = {name.partition("/")[2] if name.startswith("0_") else name for name in files}
    patterns = [*_TRANSFORMER]
    has_onnx = not names.isdisjoint(ONNX_FILES)
    if has_onnx:
        patterns += _ONNX
    if weights or not has_onnx:
        patterns += _WEIGHTS
    if "tokenizer.json" not in names:
        patterns += _SLOW_TOKENIZER
    return [*_CARD, *patterns, *(f"0_*/{pattern}" for pattern in patterns)]


def within(timeout_s: float | None, call: Callable[[], _T]) -> _T:
    """The result of `call`, if it comes in time.

    The library's own timeout does not cover the resolver, which can hang for longer.

    Raises:
        HubUnavailable: It took longer; `call` goes on in a daemon thread.
    """
    outcome: SimpleQueue[Callable[[], _T]] = SimpleQueue()

    def work() -> None:
        try:
            result = call()
        except Exception as error:
            outcome.put(partial(_raise, error))
        else:
            outcome.put(lambda: result)

    Thread(target=work, daemon=True, name="shoal-hub").start()
    try:
        give = outcome.get(timeout=timeout_s)
    except Empty:
        raise HubUnavailable(f"the hub did not answer within {timeout_s:g} s") from None
    return give()


def _raise(error: Exception) -> NoReturn:
    raise error
