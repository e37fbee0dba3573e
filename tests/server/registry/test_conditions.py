"""What is noted of versions beside their life in memory."""

from __future__ import annotations

import pytest

from shoal_server.core import ModelKey
from shoal_server.registry.conditions import SOUND, Condition, Conditions

A, B = ModelKey("m", "1"), ModelKey("m", "2")
MODEL = ModelKey("m", "")


def test_what_goes_on_is_noted_while_it_goes_on() -> None:
    """Also when it fails; the last begun is shown."""
    conditions = Conditions()
    with pytest.raises(ValueError, match="gone wrong"), conditions.updating(A, "outer"):
        with conditions.updating(A, "inner"), conditions.downloading(A, "files"):
            assert conditions.of(A) == Condition("inner", "files")
        assert conditions.of(A) == Condition("outer")
        raise ValueError("gone wrong")
    assert conditions.of(A) == SOUND


def test_what_goes_on_may_end_in_any_order() -> None:
    """Each leaves what the others noted."""
    conditions = Conditions()
    first, second = conditions.updating(A, "first"), conditions.updating(A, "second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert conditions.of(A) == Condition("second")
    second.__exit__(None, None, None)
    assert conditions.of(A) == SOUND


def test_a_fault_stays_until_it_is_mended() -> None:
    """The last reason counts; mending what is not broken does nothing."""
    conditions = Conditions()
    conditions.mend(A)
    conditions.fault(A, "worse")
    conditions.fault(A, "worse still")
    assert conditions.of(A) == Condition(fault="worse still")
    conditions.mend(A)
    assert conditions.of(A) == SOUND


def test_what_is_noted_of_a_model_holds_for_versions_without_notes_of_their_own() -> None:
    """A version's own come first, all of them."""
    conditions = Conditions()
    conditions.fault(A, "worse")
    with conditions.downloading(MODEL, "version 3"):
        assert conditions.of(MODEL) == conditions.of(B) == Condition(downloading="version 3")
        assert conditions.of(A) == Condition(fault="worse")


def test_each_change_is_told_once_it_is_there() -> None:
    """With the key that was named; what changes nothing is not told."""
    conditions, told = Conditions(), list[tuple[ModelKey, Condition]]()
    conditions.observe(lambda key: told.append((key, conditions.of(key))))
    with conditions.downloading(MODEL, "files"):
        pass
    conditions.fault(A, "worse")
    conditions.mend(A)
    conditions.mend(A)
    expected = [
        (MODEL, Condition(downloading="files")),
        (MODEL, SOUND),
        (A, Condition(fault="worse")),
        (A, SOUND),
    ]
    assert expected == told


def test_a_remark_hides_nothing() -> None:
    """It is shown with what is noted of the version, else of the model."""
    conditions = Conditions()
    conditions.remark(A, "look")
    assert conditions.of(A) == Condition(remark="look")
    conditions.fault(MODEL, "broken")
    assert conditions.of(A) == Condition(fault="broken", remark="look")
    conditions.fault(A, "worse")
    assert conditions.of(A) == Condition(fault="worse", remark="look")
    conditions.remark(A, None)
    assert conditions.of(A) == Condition(fault="worse")
