"""Whatever happens in whatever order, a model's state is what a plain reading of it says.

Registry, labels, conditions, catalog and pool are the real ones; only sessions are fakes.
The reading keeps its own books of what was done, and takes from the pool nothing but where
a session is.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from shoal_server.catalog import Catalog
from shoal_server.core import ModelKey, ModelRef
from shoal_server.errors import ModelLoadFailed, ModelNotFound, ShoalError
from shoal_server.inference.devices import AvailableDevices
from shoal_server.labelling import Labeller
from shoal_server.lifecycle import ModelState, Unloading, UnloadReason
from shoal_server.placement import Placement
from shoal_server.registry.events import ModelStateChanged
from shoal_server.registry.memory_pins import MemoryPins
from shoal_server.registry.registry import Registry
from shoal_server.registry.repository import ModelRepository
from shoal_server.registry.store import Change, RecordStore
from shoal_server.residency.idle import IdleRules
from shoal_server.residency.probes import Gpus
from shoal_server.residency.resident import Lease, State
from tests.server.batching.fakes import settle
from tests.server.residency.fakes import CPU, Bench, FakeSession
from tests.tiny_model import make_tiny_model

KEYS = (ModelKey("one", "1"), ModelKey("one", "2"), ModelKey("two", "1"))
SIZES = dict(zip(KEYS, (10, 20, 30), strict=True))
WHERE = {
    State.LOADING: "loading",
    State.READY: "ready",
    State.LEAVING: "unloading",
    State.CLOSING: "unloading",
}

# What to do, to which version, and a number to choose by.
Step = tuple[str, ModelKey, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("acquire", "acquire", "acquire", "release", "cancel", "cancel"),
                *(
                    "load",
                    "pin",
                    "unpin",
                    "unload",
                    "unload",
                    "force",
                    "pass_time",
                    "press",
                    "refuse",
                ),
                *("hold_load", "hold_close", "go_on", "fail", "forget_failure"),
                *("deprecate", "undeprecate", "begin", "begin", "end", "fault", "mend"),
                *(
                    "break_files",
                    "mend_files",
                    "remove",
                    "put_back",
                    "look",
                    "look",
                    "look_at_all",
                    "discover",
                ),
            ]
        ),
        st.sampled_from(KEYS),
        st.integers(0, 7),
    ),
    min_size=10,
    max_size=50,
)


class Forgetful:
    """A store that keeps nothing."""

    async def write(self, *changes: Change) -> None:
        """As if it were written."""


class Reading:
    """What was done to versions and models, and what state that makes of a version."""

    def __init__(self) -> None:
        self.failures: dict[ModelKey, str] = {}
        self.deprecated: set[ModelKey] = set()
        self.faults: dict[ModelKey, str] = {}
        self.going_on: defaultdict[tuple[str, ModelKey], list[str]] = defaultdict(list)
        self.broken: set[ModelKey] = set()
        """As they were when somebody looked last."""

    def state(self, key: ModelKey, where: str) -> str:
        """The state of a version that is there in memory; empty: it is not."""
        if where in ("loading", "unloading"):
            return where
        noted = next((each for each in (key, ModelKey(key.name, "")) if self._is_noted(each)), key)
        if self.going_on["updating", noted]:
            return "updating"
        if self.going_on["downloading", noted]:
            return "downloading"
        if noted in self.faults or (not where and (key in self.failures or key in self.broken)):
            return "error"
        if self.deprecated & {key, ModelKey(key.name, "")}:
            return "deprecated"
        return where or "registered"

    def reasons(self, key: ModelKey, state: str) -> set[str]:
        """Those that a state may have; none: it depends on what the pool did."""
        models = ModelKey(key.name, "")
        if state in ("updating", "downloading"):
            return {
                reasons[-1] for each in (key, models) if (reasons := self.going_on[state, each])
            }
        if state == "error":
            faults = {self.faults[each] for each in (key, models) if each in self.faults}
            return faults or {self.failures.get(key, "")} - {""}
        return {f"{key} is deprecated"} if state == "deprecated" else set()

    def _is_noted(self, key: ModelKey) -> bool:
        goes_on = (self.going_on[kind, key] for kind in ("updating", "downloading"))
        return key in self.faults or any(goes_on)


class Scenario:
    """Does what hypothesis says, and compares after each step."""

    def __init__(self, root: Path) -> None:
        self.registry = Registry(ModelRepository(root), "one")
        self.root = root
        self.bench = bench = Bench(
            models=2, size_bytes=45, idle=IdleRules({CPU: 25.0}), versions=self.registry
        )
        bench.loader.predicted.update(SIZES)
        self.catalog = Catalog(
            self.registry,
            cast(Any, bench.pool),
            Placement(AvailableDevices(0, "", gpu_expected=False), Gpus(), "auto"),
            MemoryPins(RecordStore(Path("nowhere"))),
            bench.states,
        )
        self.labeller = Labeller(self.registry, cast(Any, Forgetful()), bench.states)
        self.reading = Reading()
        self.on_disk_broken: set[ModelKey] = set()
        self.removed: set[ModelKey] = set()
        self.forgotten: set[ModelKey] = set()
        """Failures that nobody has looked at since."""
        self.outcomes_seen = 0
        self.open: list[tuple[str, ModelKey, str, AbstractContextManager[None]]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.leases: list[Lease[FakeSession]] = []

    async def run(self, steps: list[Step]) -> None:
        for key in KEYS:
            await self.registry.look_up(ModelRef(key.name, key.version))
        for name, key, number in steps:
            await getattr(self, name)(key, number)
            self.check()
            if number % 2:  # else the next step comes before this one's consequences
                await settle()
                self.check()
        await self.finish()

    # -- memory ------------------------------------------------------------------

    async def acquire(self, key: ModelKey, _: int) -> None:
        async def borrow() -> None:
            self.leases.append(await self.bench.acquire(key))

        self._spawn(borrow())

    async def release(self, _: ModelKey, number: int) -> None:
        if self.leases:
            self.leases.pop(number % len(self.leases)).release()

    async def cancel(self, _: ModelKey, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()

    async def load(self, key: ModelKey, _: int, pin: bool | None = None) -> None:
        async def forgetting() -> None:
            self._forget(key)
            await self.bench.pool.load(key, CPU, pin=pin)

        self._spawn(forgetting())

    async def pin(self, key: ModelKey, number: int) -> None:
        await self.load(key, number, pin=True)

    async def unpin(self, key: ModelKey, _: int) -> None:
        self.bench.pool.pin(key, False)

    async def unload(self, key: ModelKey, _: int) -> None:
        self._spawn(self.bench.pool.unload(key))

    async def force(self, key: ModelKey, _: int) -> None:
        self._spawn(self.bench.pool.unload(key, force_after_s=0.0))

    async def pass_time(self, _: ModelKey, number: int) -> None:
        self.bench.now_s += 10.0 * number
        self.bench.call_due()

    async def press(self, _: ModelKey, number: int) -> None:
        why = Unloading(UnloadReason.PRESSURE)
        self._spawn(self.bench.pool.release_unused(CPU, number % 2 * 10.0, why))

    async def refuse(self, _: ModelKey, number: int) -> None:
        self.bench.pool.refuse_loads(CPU, "no memory" if number % 2 else None)

    async def hold_load(self, key: ModelKey, _: int) -> None:
        self.bench.loader.load_gates[key].close()

    async def hold_close(self, key: ModelKey, _: int) -> None:
        self.bench.loader.close_gates[key].close()

    async def go_on(self, key: ModelKey, _: int) -> None:
        self.bench.loader.load_gates[key].open()
        self.bench.loader.close_gates[key].open()

    async def fail(self, key: ModelKey, number: int) -> None:
        self.bench.loader.errors[key].append(ModelLoadFailed(f"no good {number}"))

    async def forget_failure(self, key: ModelKey, _: int) -> None:
        self._forget(key)
        self.bench.pool.forget_failure(key)

    def _forget(self, key: ModelKey) -> None:
        self._take_outcomes()
        if self.reading.failures.pop(key, None) is not None:
            self.forgotten.add(key)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.append(asyncio.create_task(work))

    # -- labels and conditions ---------------------------------------------------

    async def deprecate(self, key: ModelKey, number: int) -> None:
        key = _or_model(key, number)
        if key in self.removed:
            return
        await self.labeller.deprecate(_name(key), message="", replacement="", refuse_after_s=None)
        self.reading.deprecated.add(key)

    async def undeprecate(self, key: ModelKey, number: int) -> None:
        key = _or_model(key, number)
        if key in self.removed:
            return
        await self.labeller.undeprecate(_name(key))
        self.reading.deprecated.discard(key)

    async def begin(self, key: ModelKey, number: int) -> None:
        kind, key = ("updating", "downloading")[number % 2], _or_model(key, number)
        reason = f"{kind} {number}"
        self.reading.going_on[kind, key].append(reason)
        during = getattr(self.bench.conditions, kind)(key, reason)
        during.__enter__()
        self.open.append((kind, key, reason, during))

    async def end(self, _: ModelKey, number: int) -> None:
        if self.open:
            kind, key, reason, during = self.open.pop(number % len(self.open))
            self.reading.going_on[kind, key].remove(reason)
            during.__exit__(None, None, None)

    async def fault(self, key: ModelKey, number: int) -> None:
        key = _or_model(key, number)
        self.reading.faults[key] = f"wrong {number}"
        self.bench.conditions.fault(key, f"wrong {number}")

    async def mend(self, key: ModelKey, number: int) -> None:
        key = _or_model(key, number)
        self.reading.faults.pop(key, None)
        self.bench.conditions.mend(key)

    # -- files and looking -------------------------------------------------------

    async def break_files(self, key: ModelKey, _: int) -> None:
        path = self._manifest(key)
        if key not in self.on_disk_broken | self.removed:
            path.write_text("no manifest " + path.read_text())
            self.on_disk_broken.add(key)

    async def mend_files(self, key: ModelKey, _: int) -> None:
        if key not in self.removed:
            mend(self._manifest(key))
            self.on_disk_broken.discard(key)

    async def remove(self, key: ModelKey, _: int) -> None:
        if key not in self.removed:
            hide(self._manifest(key).parent)
            self.removed.add(key)

    async def put_back(self, key: ModelKey, _: int) -> None:
        if key in self.removed:
            show(self._manifest(key).parent)
            self.removed.discard(key)

    def _manifest(self, key: ModelKey) -> Path:
        return self.root / key.name / key.version / "version.toml"

    async def look(self, key: ModelKey, _: int) -> None:
        if key in self.removed:
            with pytest.raises(ModelNotFound):
                await self.catalog.get(str(key))
            return
        found = await self.catalog.get(str(key))
        # Nothing has happened since the catalog read it.
        self._looked(key, is_broken=key in self.on_disk_broken)
        state = self._expected(key)
        assert found.state == state, self.bench.pool
        reasons = self.reading.reasons(key, state)
        assert not reasons or found.state_reason in reasons

    async def look_at_all(self, _: ModelKey, __: int) -> None:
        for listed in await self.catalog.listed():
            key, problem = listed.files.key, listed.files.problem
            if key is not None:
                self._looked(key, is_broken=problem != "")
            # Without a version nothing is wrong: there is nothing.
            state = self._expected(key or ModelKey(listed.name, ""))
            assert listed.state == state, self.bench.pool

    async def discover(self, _: ModelKey, __: int) -> None:
        await self.catalog.discover()

    def _looked(self, key: ModelKey, *, is_broken: bool) -> None:
        self.forgotten.discard(key)
        self.reading.broken -= {key}
        self.reading.broken |= {key} if is_broken else set()

    # -- comparing ----------------------------------------------------------------

    def check(self) -> None:
        """What was told last of each is what it is now, whether or not anybody looks."""
        self.bench.pool.check_integrity()
        told = self.bench.published.states()  # each step is legal and begins where one ended
        for key in KEYS:
            now = told.get(key, ModelState.REGISTERED)
            if key in self.forgotten and now is ModelState.ERROR:
                continue
            assert now == self._expected(key), (key, self.bench.pool)
        for task in [each for each in self.tasks if each.done()]:
            self.tasks.remove(task)
            assert task.cancelled() or isinstance(task.exception(), ShoalError | None), task

    def _expected(self, key: ModelKey) -> str:
        self._take_outcomes()
        resident = self.bench.pool.get(key)
        return self.reading.state(key, WHERE[resident.state] if resident else "")

    def _take_outcomes(self) -> None:
        for load in self.bench.observer.loads[self.outcomes_seen :]:
            if load.error is None:
                self.reading.failures.pop(load.key, None)
            elif isinstance(load.error, ModelLoadFailed):
                self.reading.failures[load.key] = load.error.message
            self.forgotten.discard(load.key)
        self.outcomes_seen = len(self.bench.observer.loads)

    async def finish(self) -> None:
        """Everybody leaves, everything ends: what is left is what lasts."""
        self.bench.pool.refuse_loads(CPU, None)
        while self.leases:
            self.leases.pop().release()
        while self.open:
            await self.end(KEYS[0], 0)
        for task in self.tasks:
            task.cancel()
        await settle()
        while self.leases:
            self.leases.pop().release()
        await self.bench.shut_down()
        self.check()
        for key in KEYS:
            await self.put_back(key, 0)
            await self.mend_files(key, 0)
            await self.look(key, 0)
        self.check()
        for each in self.bench.published.events:
            if isinstance(each, ModelStateChanged):
                event(f"{each.before} → {each.after}")


def _or_model(key: ModelKey, number: int) -> ModelKey:
    """The version, or its model."""
    return ModelKey(key.name, "") if number > 5 else key


def _name(key: ModelKey) -> str:
    return str(key) if key.version else key.name


def mend(manifest: Path) -> None:
    """Undo `break_files`."""
    manifest.write_text(manifest.read_text().removeprefix("no manifest "))


def hide(folder: Path) -> None:
    """Let a version be nowhere."""
    folder.rename(_hidden(folder))


def show(folder: Path) -> None:
    """Undo `hide`."""
    if _hidden(folder).exists():
        _hidden(folder).rename(folder)


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for key in KEYS:
        make_tiny_model(root, key.name, version=key.version)
    return root


@given(steps=STEPS)
@settings(deadline=None, max_examples=100)
def test_a_state_is_what_was_done(root: Path, steps: list[Step]) -> None:
    """Told by events and by looking alike, through legal steps only."""
    scenario = Scenario(root)
    try:
        asyncio.run(scenario.run(steps))
    finally:
        for key in KEYS:
            show(root / key.name / key.version)
            mend(root / key.name / key.version / "version.toml")


async def test_the_scenario_would_notice_a_state_that_nobody_told(root: Path) -> None:
    """The random test looks: a change behind the back of who tells fails it."""
    scenario = Scenario(root)
    await scenario.look(KEYS[0], 0)
    scenario.check()
    scenario.reading.faults[KEYS[0]] = "worse"
    with pytest.raises(AssertionError):
        scenario.check()
