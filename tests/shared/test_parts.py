"""An array is put together only when it is no larger than it may be, however often it names a part."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from shared.errors import MessageError
from shared.parts import arrays_of_at_most


def put_together(array: Array) -> Array:
    parts = {name: part.deflate() for name, part in get_all_nested_objects(array).items()}
    found = inflatable_utils.inflate_object_from_contents(array.object_id, parts)
    assert isinstance(found, Array)
    return found


def test_an_update_of_zeros_names_one_part_many_times_and_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 1000)
    array = Array(np.zeros(10_000, np.float32))
    assert len(get_all_nested_objects(array)) < 5, "40 parts, most of them the same"
    with arrays_of_at_most(len(array.data)):
        assert put_together(array).data == array.data
    with arrays_of_at_most(len(array.data) - 1), pytest.raises(MessageError, match="more than 40127 bytes"):
        put_together(array)


def test_afterwards_flower_is_as_it_was() -> None:
    array = Array(np.ones(100, np.float32))
    before = inflatable_utils.inflatable_class_registry["Array"]
    with pytest.raises(MessageError), arrays_of_at_most(0):
        put_together(array)
    assert inflatable_utils.inflatable_class_registry["Array"] is before
    assert put_together(array).data == array.data
