-- Bemi's changes of one database, copied into the temporary table bemi_changes, become changes of
-- the trail's epoch 0: before everything that was captured, whatever the positions say.
-- Parameters: the source's name in the trail.

CREATE TEMPORARY TABLE imported ON COMMIT DROP AS
WITH captured AS (
    -- How the trail knows each table, and since when it captures it.
    SELECT DISTINCT ON (schema_name, table_name)
        schema_name, table_name, relation_oid, key_columns, publication, from_lsn, from_time
    FROM pgaudit_ctx.coverage WHERE source = %(source)s AND epoch > 0
    ORDER BY schema_name, table_name, epoch, from_lsn
)
SELECT
    -- Bemi keeps each change's own position, and the trail that of the commit: the last one.
    '0/0'::pg_lsn + max(b.position) OVER same AS commit_lsn,
    row_number() OVER (PARTITION BY b.transaction_id, b.committed_at ORDER BY b.position, b.id)
        AS ordinal,
    b.transaction_id, b.committed_at,
    CASE b.operation WHEN 'CREATE' THEN 'INSERT' ELSE b.operation END AS operation,
    c.schema_name, c.table_name, c.relation_oid, c.key_columns, c.publication,
    CASE WHEN b.operation = 'DELETE' THEN b.before ELSE b.after END AS image,
    nullif(b.before, '{}') AS before, nullif(b.after, '{}') AS after,
    -- What the adapter adds for itself is not of interest any more.
    nullif(b.context - 'SQL', '{}') AS context,
    c.from_lsn, c.from_time
FROM bemi_changes b
JOIN captured c ON c.schema_name = b.schema AND c.table_name = b.table
WHERE b.operation IN ('CREATE', 'UPDATE', 'DELETE', 'TRUNCATE') AND b.committed_at < c.from_time
WINDOW same AS (PARTITION BY b.transaction_id, b.committed_at);

SELECT pgaudit_ctx.ensure_partition(committed_at) FROM (
    SELECT DISTINCT date_trunc('month', committed_at, 'UTC') AS committed_at FROM imported
) AS months;

INSERT INTO pgaudit_ctx.changes (
    source, epoch, commit_lsn, ordinal, transaction_id, committed_at, operation, schema_name,
    table_name, relation_oid, primary_key, previous_key, before, after, context
)
SELECT
    %(source)s, 0, commit_lsn, ordinal, transaction_id, committed_at, operation, schema_name,
    table_name, relation_oid,
    CASE WHEN operation <> 'TRUNCATE' AND cardinality(key_columns) > 0
        THEN ARRAY(SELECT image ->> k FROM unnest(key_columns) WITH ORDINALITY AS u(k, n) ORDER BY n)
    END,
    CASE WHEN operation = 'UPDATE' AND EXISTS (
        SELECT FROM unnest(key_columns) AS u(k) WHERE before ->> k IS DISTINCT FROM after ->> k
    ) AND before IS NOT NULL
        THEN ARRAY(SELECT before ->> k FROM unnest(key_columns) WITH ORDINALITY AS u(k, n) ORDER BY n)
    END,
    CASE operation
        WHEN 'DELETE' THEN before
        -- Of the old row the trail keeps what changed.
        WHEN 'UPDATE' THEN (
            SELECT coalesce(jsonb_object_agg(o.key, o.value), '{}') FROM jsonb_each(before) AS o
            WHERE o.value IS DISTINCT FROM after -> o.key
        )
    END,
    CASE WHEN operation IN ('INSERT', 'UPDATE') THEN after END,
    context
FROM imported
ON CONFLICT DO NOTHING;
