-- What the rows that existed already need: which key a table had, and which baselines were taken.

-- A key that was dropped and made again has another index, also where its columns are the same.
ALTER TABLE pgaudit_ctx.coverage ADD COLUMN key_index oid;

CREATE TABLE pgaudit_ctx.snapshots (
    source text NOT NULL,
    epoch integer NOT NULL,
    relation_oid oid NOT NULL,
    lsn pg_lsn NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    taken_at timestamptz NOT NULL,
    after_key text[],
    last_key text[],
    row_count bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (source, epoch, relation_oid, lsn)
);
COMMENT ON TABLE pgaudit_ctx.snapshots IS
    'Baselines: which table''s existing rows were stored, as of where in the write-ahead log.';
COMMENT ON COLUMN pgaudit_ctx.snapshots.after_key IS
    'Where a baseline that was interrupted goes on: it holds the rows with a greater key only.';
