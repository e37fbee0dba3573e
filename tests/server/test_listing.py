"""Which models are shown, and that pages neither repeat nor hide any."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_server.catalog import ListedModel
from shoal_server.core import ModelKey, ModelKind, Pooling
from shoal_server.errors import InvalidInput
from shoal_server.lifecycle import ModelState
from shoal_server.listing import Order, Query, select
from shoal_server.registry.capabilities import Capabilities, Graph, InputType
from shoal_server.registry.index import ModelFiles
from shoal_server.registry.manifest import ModelManifest, Source, VersionManifest
from shoal_server.registry.scopes import Scope


@dataclass(frozen=True)
class Resident:
    """As much of a session as a list needs."""

    device: str
    last_used_s: float


@dataclass(frozen=True)
class Chosen:
    """As much of a graph as a list needs."""

    file_bytes: int


@dataclass(frozen=True)
class Model:
    """A model as `ListedModel` shows it."""

    name: str
    files: ModelFiles
    state: ModelState
    resident: Resident | None
    tags: tuple[str, ...]
    devices: tuple[str, ...]


def model(
    name: str,
    *,
    state: ModelState = ModelState.REGISTERED,
    device: str = "",
    last_used_s: float = 0.0,
    tags: tuple[str, ...] = (),
    about: str = "",
    dimensions: int = 8,
    file_bytes: int = 0,
    languages: tuple[str, ...] = (),
    precisions: tuple[str, ...] = ("fp32",),
    prompts: tuple[str, ...] = (),
    max_tokens: int = 16,
    reads_texts: bool = True,
    devices: tuple[str, ...] = ("cpu",),
    version: str = "1",
) -> ListedModel:
    manifest = VersionManifest(
        dimensions=dimensions, matryoshka_dimensions=(dimensions // 2,), max_tokens=16,
        vocabulary_size=10, pooling=Pooling.MEAN, normalized=True, created_at="", files={},
        source=Source(kind="local", location="tests", exported=True),
    )  # fmt: skip
    capabilities = Capabilities(
        kind=ModelKind.TEXT_EMBEDDING,
        input_types=frozenset(InputType) if reads_texts else frozenset({InputType.TOKENS}),
        sizes=frozenset((dimensions, dimensions // 2)),
        max_tokens=max_tokens,
        languages=languages,
        prompts=frozenset(prompts),
        graphs=tuple(Graph(each, 1) for each in precisions),
    )
    files = ModelFiles(
        ModelKey(name, version), (version,), ModelManifest(), manifest,
        cast(Any, Chosen(file_bytes)), "", f"{name}\n{about}".lower(), capabilities,
    )  # fmt: skip
    resident = Resident(device, last_used_s) if device else None
    return cast(ListedModel, Model(name, files, state, resident, tags, devices))


MODELS = [
    model("alpha", state=ModelState.READY, device="cpu", last_used_s=5.0, tags=("prod", "en"),
          languages=("en", "zh-Hant"), precisions=("fp32", "int8"), prompts=("query",)),
    model("beta", about="Finds Questions", tags=("en",), dimensions=16, file_bytes=300,
          languages=("en",), max_tokens=512, devices=("cpu", "cuda:0")),
    model("gamma", state=ModelState.ERROR, about="finds answers", file_bytes=200,
          reads_texts=False, languages=("zhx",)),
    model("delta", state=ModelState.READY, device="cuda:0", last_used_s=9.0, tags=("prod",),
          precisions=("fp32", "fp16"), devices=("cuda:0", "cuda:1")),
]  # fmt: skip


def names(query: Query) -> list[str]:
    return [each.name for each in select(MODELS, query).models]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), ["alpha", "beta", "delta", "gamma"]),
        (Query(states=frozenset({ModelState.READY, ModelState.ERROR})),
         ["alpha", "delta", "gamma"]),
        (Query(device="cpu"), ["alpha"]),
        (Query(tags=frozenset({"prod"})), ["alpha", "delta"]),
        (Query(tags=frozenset({"prod", "en"})), ["alpha"]),
        (Query(words=("finds",)), ["beta", "gamma"]),
        (Query(words=("finds", "answer")), ["gamma"]),
        (Query(words=("finds", "en")), ["beta"]),
        (Query(words=("prod", "alp")), ["alpha"]),
        (Query(kind=ModelKind.TEXT_EMBEDDING, dimensions=16), ["beta"]),
        (Query(dimensions=8), ["alpha", "beta", "delta", "gamma"]),
        (Query(languages=("en",)), ["alpha", "beta"]),
        (Query(languages=("en", "zh")), ["alpha"]),
        (Query(languages=("zh-hant",)), ["alpha"]),
        (Query(languages=("zh-hans",)), []),
        (Query(precision="fp32"), ["alpha", "beta", "delta", "gamma"]),
        (Query(precision="int8"), ["alpha"]),
        (Query(input_type=InputType.TEXT), ["alpha", "beta", "delta"]),
        (Query(input_type=InputType.TOKENS), ["alpha", "beta", "delta", "gamma"]),
        (Query(runs_on="cpu"), ["alpha", "beta", "gamma"]),
        (Query(runs_on="cuda"), ["beta", "delta"]),
        (Query(runs_on="cuda:1"), ["delta"]),
        (Query(prompt="query"), ["alpha"]),
        (Query(tokens=17), ["beta"]),
        (Query(tokens=512), ["beta"]),
        (Query(tokens=513), []),
        (Query(order=Order.FILE_BYTES, descending=True), ["beta", "gamma", "delta", "alpha"]),
        (Query(order=Order.LAST_USED, descending=True), ["delta", "alpha", "gamma", "beta"]),
        (Query(order=Order.STATE), ["gamma", "alpha", "delta", "beta"]),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_shown(query: Query, expected: list[str]) -> None:
    """And nothing else; equals are in the order of their names."""
    assert names(query) == expected


many = st.lists(
    st.builds(
        model,
        st.text("abc", min_size=1, max_size=4),
        last_used_s=st.sampled_from([0.0, 1.5, 2.0]),
        device=st.sampled_from(["", "cpu"]),
        file_bytes=st.integers(0, 3),
        state=st.sampled_from(ModelState),
    ),
    unique_by=lambda each: each.name,
    max_size=20,
)


@given(many, st.sampled_from(Order), st.booleans(), st.integers(1, 7))
def test_pages_together_are_the_whole(
    models: list[ListedModel], order: Order, descending: bool, page_size: int
) -> None:
    """Each model once, in the same order, however many go on a page."""
    whole = select(models, Query(order=order, descending=descending))
    found: list[ListedModel] = []
    token = ""
    while True:
        page = select(models, Query(
            order=order, descending=descending, page_size=page_size, page_token=token
        ))  # fmt: skip
        assert page.total == len(models)
        found += page.models
        token = page.next_token
        if not token:
            break
        assert len(page.models) == page_size
    assert found == list(whole.models)


def test_a_model_that_comes_or_goes_between_two_pages_moves_no_other() -> None:
    """The page goes on behind the last name, also when that is gone."""
    first = select(MODELS, Query(page_size=2))
    assert [each.name for each in first.models] == ["alpha", "beta"]
    later = [each for each in MODELS if each.name != "beta"] + [model("aaa"), model("zeta")]
    rest = select(later, Query(page_size=9, page_token=first.next_token))
    assert [each.name for each in rest.models] == ["delta", "gamma", "zeta"]


@pytest.mark.parametrize("descending", [False, True])
def test_pages_of_versions_together_are_the_whole(descending: bool) -> None:
    """Of a model the oldest version first, 2 before 10, also where a page ends among them."""
    models = [model("b"), *(model("a", version=each) for each in ("10", "1", "2", "01"))]
    found: list[str] = []
    token = ""
    while True:
        page = select(models, Query(
            scope=Scope.EVERY_VERSION, descending=descending, page_size=1, page_token=token
        ))  # fmt: skip
        found += [str(each.files.key) for each in page.models]
        token = page.next_token
        if not token:
            break
    expected = ["a@01", "a@1", "a@2", "a@10", "b@1"]
    assert found == (expected[::-1] if descending else expected)


def with_version(token: str, version: str) -> str:
    """A token that we did not give."""
    *facts, _ = json.loads(base64.urlsafe_b64decode(token))
    return base64.urlsafe_b64encode(json.dumps([*facts, version]).encode()).decode()


def test_a_token_of_another_order_is_refused() -> None:
    """It would go on in the wrong place."""
    token = select(MODELS, Query(page_size=1)).next_token
    for query in (
        Query(page_token=token, descending=True),
        Query(page_token=token, order=Order.FILE_BYTES),
        Query(page_token=token, scope=Scope.EVERY_VERSION),
        Query(page_token="nonsense"),
        Query(page_token=with_version(token, "9" * 5_000)),
        Query(page_token=with_version(token, "²")),
        Query(page_token=base64.urlsafe_b64encode(b"[" * 100_000).decode()),
        Query(page_token=token[:-4]),
    ):
        with pytest.raises(InvalidInput, match="page_token"):
            select(MODELS, query)
