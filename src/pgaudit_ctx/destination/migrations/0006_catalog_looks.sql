-- A hole in coverage lies between two looks at the source's catalog: which were the last ones.

ALTER TABLE pgaudit_ctx.checkpoints ADD COLUMN catalog_lsn pg_lsn, ADD COLUMN catalog_at timestamptz;
COMMENT ON COLUMN pgaudit_ctx.checkpoints.catalog_lsn IS
    'Where the source stood when its catalog was last compared with coverage.';

ALTER TABLE pgaudit_ctx.coverage ADD COLUMN membership text;
COMMENT ON COLUMN pgaudit_ctx.coverage.membership IS
    'Which rows of the source''s catalog publish the table, and which transactions wrote them.';
