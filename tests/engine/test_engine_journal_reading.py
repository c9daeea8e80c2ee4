"""The records of a journal can be read while another run is adding to it."""

import pytest

from intruscope.engine.journal import Journal, read_records
from intruscope.errors import OutputConflict


def test_records_are_read_while_the_journal_is_open(tmp_path):
    assert read_records(tmp_path / "none") == {}
    with Journal(tmp_path / "journal", {"a": 1}) as journal:
        journal.append("first", {"x": 0.1})
        assert read_records(tmp_path / "journal") == {"first": {"x": 0.1}}
        journal.append("second", {"x": None})
        assert list(read_records(tmp_path / "journal")) == ["first", "second"]
        with pytest.raises(OutputConflict):  # writing still needs the lock
            Journal(tmp_path / "journal", {"a": 1})


def test_a_line_that_was_cut_or_damaged_is_no_record(tmp_path):
    with Journal(tmp_path / "journal", {}) as journal:
        journal.append("first", {"x": 1})
        journal.append("second", {"x": 2})
    path = tmp_path / "journal" / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert list(read_records(tmp_path / "journal")) == ["first"]
    path.write_bytes(whole.replace(b'"x":1', b'"x":9'))
    assert list(read_records(tmp_path / "journal")) == ["second"]
