"""Take over the ``changes`` of a Bemi database into a trail of pgaudit-ctx.

    python import_bemi.py --bemi postgresql://…/bemi --destination postgresql://…/audit \\
        --source clinic --continuous

Run it once ``pgaudit-ctx setup`` has been run, so that the trail knows the tables. What Bemi has
stored before that moment is imported; running it again adds nothing twice.
"""

import argparse
from pathlib import Path

import psycopg

COLUMNS = (
    'id, "database", "schema", "table", operation, before, after, context, committed_at,'
    " transaction_id, position"
)
TABLE = """
    CREATE TEMPORARY TABLE bemi_changes (
        id uuid, "database" text, "schema" text, "table" text, operation text, before jsonb,
        after jsonb, context jsonb, committed_at timestamptz, transaction_id bigint, position bigint
    ) ON COMMIT DROP"""
# Where one interval of coverage is open and the next epoch is clean, nothing is missing between.
COVERAGE = """
    INSERT INTO pgaudit_ctx.coverage (
        source, epoch, schema_name, table_name, relation_oid, from_lsn, to_lsn, from_time, to_time,
        key_columns, identity, publication, reason
    )
    SELECT %(source)s, 0, schema_name, table_name, relation_oid, min(commit_lsn),
        CASE WHEN NOT %(continuous)s THEN max(commit_lsn) END, min(committed_at),
        CASE WHEN NOT %(continuous)s THEN max(committed_at) END, key_columns, 'f', publication,
        'imported from Bemi'
    FROM imported GROUP BY schema_name, table_name, relation_oid, key_columns, publication
    ON CONFLICT DO NOTHING"""


def import_changes(bemi: str, destination: str, source: str, *, continuous: bool) -> int:
    """Import everything in one transaction of the destination; gives the number of changes."""
    with psycopg.connect(bemi) as old, psycopg.connect(destination) as new:
        new.execute("SET TIME ZONE 'UTC'")
        new.execute(TABLE)
        with (
            old.cursor().copy(f"COPY (SELECT {COLUMNS} FROM changes) TO STDOUT") as rows,
            new.cursor().copy(f"COPY bemi_changes ({COLUMNS}) FROM STDIN") as into,
        ):
            for block in rows:
                into.write(block)
        given = {"source": source, "continuous": continuous}
        script = Path(__file__).with_name("import_bemi.sql").read_text(encoding="utf-8")
        *before, last = [part for part in script.split(";\n") if part.strip()]
        for statement in before:
            new.execute(statement, given)
        imported = new.execute(last, given).rowcount
        new.execute(COVERAGE, given)
        return imported


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bemi", required=True, help="URL of the database with Bemi's changes")
    parser.add_argument("--destination", required=True, help="URL of the trail")
    parser.add_argument("--source", required=True, help="the source's name in the trail")
    parser.add_argument(
        "--continuous",
        action="store_true",
        help="Bemi went on until after pgaudit-ctx setup, so nothing is missing between",
    )
    arguments = parser.parse_args()
    count = import_changes(
        arguments.bemi, arguments.destination, arguments.source, continuous=arguments.continuous
    )
    print(f"{count} changes imported")
