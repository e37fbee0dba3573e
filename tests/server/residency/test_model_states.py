"""Who changes what is known of a version lets its state be told, and who looks sees the same."""

from __future__ import annotations

from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelLoadFailed
from shoal_server.lifecycle import ModelState
from shoal_server.registry.events import ModelStateChanged
from shoal_server.registry.labels import Deprecation, Labels

from .conftest import MakeBench
from .fakes import A, B, Bench

REGISTERED, LOADING, READY = ModelState.REGISTERED, ModelState.LOADING, ModelState.READY
UNLOADING, ERROR, UPDATING = ModelState.UNLOADING, ModelState.ERROR, ModelState.UPDATING
DOWNLOADING, DEPRECATED = ModelState.DOWNLOADING, ModelState.DEPRECATED
A2, MODEL_A = ModelKey("a", "2"), ModelKey("a", "")


def told(bench: Bench, key: ModelKey) -> list[tuple[ModelState, str]]:
    """The states that were told of a version, and why."""
    bench.published.states()  # each begins where the one before ended
    return [
        (each.after, each.reason)
        for each in bench.published.events
        if isinstance(each, ModelStateChanged) and each.key == key
    ]


async def test_a_deprecated_version_is_that_in_memory_and_out_of_it(make_bench: MakeBench) -> None:
    """Only its ways into memory and out of it show."""
    bench = make_bench()
    version, deprecation = ModelRef(A.name, A.version), Deprecation(0.0, replacement="b")
    bench.versions.labelled.put(version, Labels(deprecation=deprecation))
    bench.states.noted(A)
    await bench.use(A)
    await bench.pool.unload(A)
    bench.versions.labelled.put(version, Labels())
    bench.states.noted(A)
    notice = "a@1 is deprecated; use b"
    assert told(bench, A) == [
        (DEPRECATED, notice),
        (LOADING, "request"),
        (DEPRECATED, notice),
        (UNLOADING, "asked"),
        (DEPRECATED, notice),
        (REGISTERED, "asked"),
    ]


async def test_a_deprecation_of_a_model_is_told_of_each_version_known(
    make_bench: MakeBench,
) -> None:
    """Of the model itself where no version is known."""
    bench = make_bench()
    bench.versions.known = [A, A2]
    for name in (A.name, "z"):
        bench.versions.labelled.put(ModelRef(name), Labels(deprecation=Deprecation(0.0)))
    bench.states.noted(MODEL_A)
    bench.states.noted(ModelKey("z", ""))
    assert bench.published.states() == dict.fromkeys((A, A2, ModelKey("z", "")), DEPRECATED)


async def test_what_goes_on_shows_over_ready(make_bench: MakeBench) -> None:
    """And ready is what it is afterwards: it served all the while."""
    bench = make_bench()
    await bench.use(A)
    with bench.conditions.updating(A, "read again"), bench.conditions.downloading(A, "files"):
        assert bench.states.look(A, "") == (UPDATING, "read again")
    assert told(bench, A)[2:] == [(UPDATING, "read again"), (READY, "")]


async def test_who_looks_is_told_why_a_model_stays(make_bench: MakeBench) -> None:
    """For a request's word, until another takes it back; a pin counts more."""
    bench = make_bench()
    with await bench.acquire(A) as lease:
        lease.keep_alive(-1)
    assert bench.states.look(A, "") == (READY, "kept for ever: a request's keep-alive")
    bench.pool.pin(A, True)
    assert bench.states.look(A, "") == (READY, "pinned")
    bench.pool.pin(A, False)
    with await bench.acquire(A) as lease:
        lease.keep_alive(60)
    assert bench.states.look(A, "") == (READY, "")


async def test_a_fault_is_an_error_that_serves(make_bench: MakeBench) -> None:
    """Verification finds it wrong; whoever asks for it gets it."""
    bench = make_bench()
    await bench.use(A)
    bench.conditions.fault(A, "verification: worse")
    (await bench.acquire(A)).release()
    bench.conditions.mend(A)
    assert told(bench, A)[2:] == [(ERROR, "verification: worse"), (READY, "")]


async def test_a_download_of_a_model_is_told_where_it_began(make_bench: MakeBench) -> None:
    """Its first version comes meanwhile, and is known when the download ends."""
    bench = make_bench()
    with bench.conditions.downloading(MODEL_A, "its first version"):
        assert bench.states.look(MODEL_A, "run pull")[0] is DOWNLOADING
        bench.versions.known = [A]
        assert bench.states.look(A, "")[0] is DOWNLOADING
    assert bench.published.states() == {MODEL_A: REGISTERED, A: REGISTERED}


async def test_broken_files_are_told_once_somebody_looks(make_bench: MakeBench) -> None:
    """And that they are mended, too."""
    bench = make_bench()
    for problem in ("broken", "broken", ""):
        bench.states.look(A, problem)
    assert told(bench, A) == [(ERROR, "broken"), (REGISTERED, "")]


async def test_a_model_without_a_version_is_registered_and_says_how_to_get_one(
    make_bench: MakeBench,
) -> None:
    """That is nothing wrong with it, and nothing to tell."""
    bench = make_bench()
    assert bench.states.look(MODEL_A, "run pull") == (REGISTERED, "run pull")
    assert bench.published.events == []


async def test_a_failure_that_is_forgotten_is_told_when_somebody_looks(
    make_bench: MakeBench,
) -> None:
    """Until then nothing has happened to the model."""
    bench = make_bench()
    bench.loader.errors[A].append(ModelLoadFailed("no good"))
    caller = await bench.waiting(A)
    assert isinstance(caller.exception(), ModelLoadFailed)
    assert bench.states.look(A, "") == (ERROR, "no good")
    bench.pool.forget_failure(A)
    assert bench.states.look(A, "") == (REGISTERED, "")
    assert [state for state, _ in told(bench, A)] == [LOADING, ERROR, REGISTERED]


async def test_looking_without_a_reason_sees_the_same(make_bench: MakeBench) -> None:
    """The quick look at the many, and the one at each."""
    bench = make_bench()
    await bench.use(A)
    bench.versions.labelled.put(ModelRef("b"), Labels(deprecation=Deprecation(0.0)))
    c, d = ModelKey("c", "1"), ModelKey("d", "1")
    bench.conditions.fault(ModelKey("c", ""), "worse")
    for key, problem in ((A, ""), (B, ""), (c, ""), (d, "broken"), (d, ""), (A2, "")):
        assert bench.states.state(key, problem) is bench.states.look(key, problem)[0]
