-- Planned moves of a source to another server: where the old one ended, and what it held then.

CREATE TABLE pgaudit_ctx.handovers (
    source text NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    epoch integer NOT NULL,
    end_lsn pg_lsn NOT NULL,
    slot_kept boolean NOT NULL,
    tables jsonb NOT NULL,
    finished_at timestamptz,
    to_epoch integer,
    differing text[],
    PRIMARY KEY (source, begun_at)
);
COMMENT ON TABLE pgaudit_ctx.handovers IS
    'Planned moves to another server: row count and digest of every table while nobody wrote.';
COMMENT ON COLUMN pgaudit_ctx.handovers.differing IS
    'Tables that were not equal at both ends; empty if all were, NULL while it is not finished.';
