-- What a person needs to know of a change that was refused, without its values.

ALTER TABLE pgaudit_ctx.rejected
    ADD COLUMN transaction_id bigint NOT NULL,
    ADD COLUMN operation text NOT NULL,
    ADD COLUMN schema_name text NOT NULL,
    ADD COLUMN table_name text NOT NULL,
    ADD COLUMN reason text NOT NULL;
COMMENT ON COLUMN pgaudit_ctx.rejected.change IS
    'The row of changes, as one tuple of COPY in the binary format.';

CREATE INDEX rejected_waiting ON pgaudit_ctx.rejected (source, epoch, commit_lsn, ordinal)
    WHERE replayed_at IS NULL;
