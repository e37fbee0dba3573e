"""The nouns that every layer shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Self

from shoal_server.errors import InvalidInput

# Model names and versions become folder names: no separators, no leading dot.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


class Priority(IntEnum):
    """Who goes first when items wait."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


class VectorEncoding(Enum):
    """How the rows of an answer are encoded (see `embed.proto`)."""

    FLOAT32 = 1
    FLOAT16 = 2
    INT8 = 3
    UBINARY = 4


class Pooling(StrEnum):
    """How token vectors become one vector: the tensor operation."""

    MEAN = "mean"
    CLS = "cls"
    LAST_TOKEN = "last_token"


class ModelKind(StrEnum):
    """What a model maps to what."""

    TEXT_EMBEDDING = "text-embedding"


def is_name(value: str) -> bool:
    """Whether `value` can name a model or a version."""
    return _NAME.fullmatch(value) is not None


def valid_name(value: str, field: str) -> str:
    """Return `value` if it can name a model or a version.

    Raises:
        InvalidInput: It could leave the model repository, or is not plain.
    """
    if not _NAME.fullmatch(value):
        shown = value if len(value) <= 64 else value[:61] + "…"
        raise InvalidInput(
            field,
            f"{shown!r} is not a name: 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit",
        )
    return value


def valid_device(value: str, field: str) -> str:
    """Return `value` if it is `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InvalidInput: It is none of these.
    """
    if not _DEVICE.fullmatch(value):
        raise InvalidInput(field, f"{value[:64]!r} is not one of auto, cpu, cuda, cuda:N")
    return value


@dataclass(frozen=True, slots=True)
class ModelKey:
    """One version of one model: what a session is a session of."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a caller calls a model: a name, and a version if it cares."""

    name: str
    version: str | None = None

    @classmethod
    def parse(cls, text: str, field: str = "model") -> Self:
        """Read `name` or `name@version`.

        Raises:
            InvalidInput: Either part is not a valid name.
        """
        name, at, version = text.partition("@")
        return cls(
            name=valid_name(name, field),
            version=valid_name(version, field) if at else None,
        )

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"
