-- The trail. Names and meanings are part of the public contract: see docs/reference/tables.md.

CREATE TABLE pgaudit_ctx.partitioning (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    unit text NOT NULL CHECK (unit IN ('month', 'quarter', 'year'))
);
COMMENT ON TABLE pgaudit_ctx.partitioning IS 'How long a time one partition of changes covers.';

CREATE TABLE pgaudit_ctx.changes (
    source text NOT NULL,
    epoch integer NOT NULL,
    commit_lsn pg_lsn NOT NULL,
    ordinal bigint NOT NULL,
    transaction_id bigint NOT NULL,
    committed_at timestamptz NOT NULL,
    captured_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    operation text NOT NULL
        CHECK (operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'SNAPSHOT')),
    schema_name text NOT NULL,
    table_name text NOT NULL,
    relation_oid oid NOT NULL,
    primary_key text[],
    previous_key text[],
    before jsonb,
    after jsonb,
    context jsonb,
    PRIMARY KEY (source, epoch, commit_lsn, ordinal, committed_at)
) PARTITION BY RANGE (committed_at);
COMMENT ON TABLE pgaudit_ctx.changes IS
    'What happened to one row (or a table, for TRUNCATE). Order is (epoch, commit_lsn, ordinal).';

-- Keys of any length fit, because only their hash is indexed; queries recheck by equality.
CREATE INDEX changes_primary_key ON pgaudit_ctx.changes (hash_array_extended(primary_key, 0));
CREATE INDEX changes_previous_key ON pgaudit_ctx.changes (hash_array_extended(previous_key, 0))
    WHERE previous_key IS NOT NULL;
-- TRUNCATE ends the history of every record of its table, so each history asks for them.
CREATE INDEX changes_truncate ON pgaudit_ctx.changes (table_name) WHERE operation = 'TRUNCATE';

CREATE VIEW pgaudit_ctx.change_log AS
SELECT
    source, epoch, commit_lsn, ordinal, transaction_id, committed_at, captured_at, operation,
    schema_name, table_name, relation_oid, primary_key, previous_key,
    CASE WHEN operation = 'UPDATE' THEN after || before ELSE before END AS before,
    after,
    CASE WHEN operation = 'UPDATE' AND before IS NOT NULL
        THEN ARRAY(SELECT jsonb_object_keys(before)) END AS changed,
    context
FROM pgaudit_ctx.changes;
COMMENT ON VIEW pgaudit_ctx.change_log IS
    'changes for people who write SQL: whole rows before and after, and the columns that changed.';

-- Not CREATE TABLE … PARTITION OF: that takes an exclusive lock on changes and would wait for
-- every open report. ATTACH PARTITION does not conflict with reading or writing.
CREATE FUNCTION pgaudit_ctx.ensure_partition(
    moment timestamptz, OUT lower_bound timestamptz, OUT upper_bound timestamptz
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    unit text := (SELECT p.unit FROM pgaudit_ctx.partitioning p);
    partition text;
    attached boolean;
BEGIN
    lower_bound := date_trunc(unit, moment);
    upper_bound := lower_bound
        + CASE unit WHEN 'quarter' THEN interval '3 months' ELSE ('1 ' || unit)::interval END;
    partition := 'changes_' || CASE unit
        WHEN 'month' THEN to_char(lower_bound, 'YYYY"m"MM')
        WHEN 'quarter' THEN to_char(lower_bound, 'YYYY"q"Q')
        ELSE to_char(lower_bound, 'YYYY') END;
    FOR turn IN 1..2 LOOP
        -- By query and not by to_regclass, whose cache an advisory lock does not refresh.
        SELECT c.relispartition INTO attached
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'pgaudit_ctx' AND c.relname = partition;
        IF attached THEN
            RETURN;
        ELSIF FOUND THEN
            RAISE EXCEPTION 'the table pgaudit_ctx.% exists but is not attached to changes', partition
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'Attach it, or rename it so that a new one can be made.';
        END IF;
        -- One at a time; whoever waited looks again.
        PERFORM pg_advisory_xact_lock(hashtext('pgaudit_ctx.ensure_partition'));
    END LOOP;
    EXECUTE format(
        'CREATE TABLE pgaudit_ctx.%I (LIKE pgaudit_ctx.changes INCLUDING ALL)', partition);
    EXECUTE format(
        'ALTER TABLE pgaudit_ctx.changes ATTACH PARTITION pgaudit_ctx.%I'
        ' FOR VALUES FROM (%L) TO (%L)', partition, lower_bound, upper_bound);
END $$;
COMMENT ON FUNCTION pgaudit_ctx.ensure_partition IS
    'Attaches the partition of changes that holds a moment, if there is none; gives its bounds.';

CREATE TABLE pgaudit_ctx.checkpoints (
    source text PRIMARY KEY,
    slot text NOT NULL,
    epoch integer NOT NULL,
    commit_lsn pg_lsn NOT NULL,
    end_lsn pg_lsn NOT NULL,
    complete_at timestamptz NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    database_oid oid NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Two names for one database and slot would each get a part of its changes.
    UNIQUE (system_identifier, database_oid, slot)
);
COMMENT ON TABLE pgaudit_ctx.checkpoints IS
    'How far each source is captured; written in the same transaction as the changes.';
COMMENT ON COLUMN pgaudit_ctx.checkpoints.complete_at IS
    'The clock of the source at end_lsn: the trail holds everything committed until then.';

CREATE TABLE pgaudit_ctx.epochs (
    source text NOT NULL,
    epoch integer NOT NULL CHECK (epoch > 0),
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL,
    from_lsn pg_lsn NOT NULL,
    fork_lsn pg_lsn,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cause text NOT NULL,
    clean boolean NOT NULL,
    PRIMARY KEY (source, epoch)
);
COMMENT ON TABLE pgaudit_ctx.epochs IS
    'A new epoch begins where positions in the write-ahead log stop being comparable.';

CREATE TABLE pgaudit_ctx.gaps (
    source text NOT NULL,
    epoch integer NOT NULL,
    from_lsn pg_lsn NOT NULL,
    to_epoch integer NOT NULL,
    to_lsn pg_lsn NOT NULL,
    from_time timestamptz NOT NULL,
    to_time timestamptz NOT NULL,
    cause text NOT NULL,
    detected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, epoch, from_lsn)
);
COMMENT ON TABLE pgaudit_ctx.gaps IS 'Ranges of the write-ahead log that can never be captured.';

CREATE TABLE pgaudit_ctx.rejected (
    source text NOT NULL,
    epoch integer NOT NULL,
    commit_lsn pg_lsn NOT NULL,
    ordinal bigint NOT NULL,
    committed_at timestamptz NOT NULL,
    change bytea NOT NULL,
    sqlstate text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    replayed_at timestamptz,
    PRIMARY KEY (source, epoch, commit_lsn, ordinal)
);
COMMENT ON TABLE pgaudit_ctx.rejected IS 'Changes that the destination refused to store.';

CREATE TABLE pgaudit_ctx.coverage (
    source text NOT NULL,
    epoch integer NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    relation_oid oid NOT NULL,
    from_lsn pg_lsn NOT NULL,
    to_lsn pg_lsn,
    from_time timestamptz NOT NULL,
    to_time timestamptz,
    key_columns text[] NOT NULL,
    identity text NOT NULL,
    publication text NOT NULL,
    ignored text[] NOT NULL DEFAULT '{}',
    redacted text[] NOT NULL DEFAULT '{}',
    reason text,
    PRIMARY KEY (source, epoch, relation_oid, from_lsn)
);
CREATE INDEX coverage_table ON pgaudit_ctx.coverage (schema_name, table_name);
COMMENT ON TABLE pgaudit_ctx.coverage IS
    'Which table was captured, from where to where, and how. to_lsn is NULL while it still is.';

CREATE TABLE pgaudit_ctx.tracked (
    source text NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    identity text NOT NULL,
    identity_before text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, schema_name, table_name)
);
COMMENT ON TABLE pgaudit_ctx.tracked IS
    'What setup decided for each table; teardown gives identity_before back.';

CREATE TABLE pgaudit_ctx.operations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    command text NOT NULL,
    arguments jsonb NOT NULL,
    result text NOT NULL
);
COMMENT ON TABLE pgaudit_ctx.operations IS 'What people did to the trail itself; append-only.';
