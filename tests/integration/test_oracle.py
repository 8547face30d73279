"""The trail against an independent witness: triggers that write down each row themselves."""

import threading

import psycopg

from support.database import Capture
from support.witness import Workload, folded, live, make_tables, told, witnessed


def test_the_trail_equals_what_triggers_wrote_down_row_by_row(blank: Capture) -> None:
    make_tables(blank.source)
    blank.setup()
    Workload(20240229, 0, truncates=True).run(blank.source, 150)
    expected = witnessed(blank.source)
    assert sum(map(len, expected.values())) > 1000
    assert {op for rows in expected.values() for op, *_ in rows} == {
        "INSERT",
        "UPDATE",
        "DELETE",
        "TRUNCATE",
    }
    assert told(blank.changes()) == expected


def test_replaying_the_trail_of_three_concurrent_clients_gives_the_live_rows(
    blank: Capture,
) -> None:
    make_tables(blank.source)
    blank.setup()
    failed: list[BaseException] = []

    def client(part: int) -> None:
        try:
            Workload(part, part, truncates=False).run(blank.source, 60)
        except psycopg.Error as error:
            failed.append(error)

    clients = [threading.Thread(target=client, args=[part]) for part in range(3)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert failed == []
    trail = blank.changes()
    assert told(trail) == witnessed(blank.source)
    assert folded(trail) == live(blank.source)
