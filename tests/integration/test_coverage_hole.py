"""as_of inside a hole of coverage says that it cannot know, instead of what held before."""

import pytest

from pgaudit_ctx import AuditReader, HistoryUnknown
from support.clinic import Patient
from support.database import Capture


def test_as_of_while_a_table_was_out_of_the_publication_is_unknown(capture: Capture) -> None:
    capture.source.execute("INSERT INTO patient (id, name, status) VALUES (1, 'x', 'ACTIVE')")
    capture.run()
    capture.source.execute("ALTER PUBLICATION pgaudit_ctx DROP TABLE patient")
    capture.run()
    capture.source.execute("UPDATE patient SET name = 'changed while nobody looked'")
    ((inside,),) = capture.source.execute("SELECT clock_timestamp() AS now")
    capture.source.execute("ALTER PUBLICATION pgaudit_ctx ADD TABLE patient")
    capture.run()
    with pytest.raises(HistoryUnknown):
        AuditReader(capture.destination.engine()).as_of(Patient, 1, inside)
