-- What is stored stays as it is, and whoever writes it needs no more than INSERT.

CREATE FUNCTION pgaudit_ctx.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'pgaudit_ctx.% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege',
            HINT = 'Old changes leave the trail as whole partitions.';
END $$;
COMMENT ON FUNCTION pgaudit_ctx.refuse_change IS 'Keeps stored rows from being changed or deleted.';

-- Partitions get a row's triggers from changes by themselves, but not those of TRUNCATE. ALWAYS,
-- because session_replication_role = replica would switch others off.
CREATE PROCEDURE pgaudit_ctx.guard(guarded regclass, partition boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT partition THEN
        EXECUTE format('CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON %s'
            ' FOR EACH ROW EXECUTE FUNCTION pgaudit_ctx.refuse_change()', guarded);
    END IF;
    EXECUTE format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %s'
        ' FOR EACH STATEMENT EXECUTE FUNCTION pgaudit_ctx.refuse_change()', guarded);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_change,'
        ' ENABLE ALWAYS TRIGGER refuse_truncate', guarded);
END $$;
COMMENT ON PROCEDURE pgaudit_ctx.guard IS 'Makes a table append-only.';

CALL pgaudit_ctx.guard('pgaudit_ctx.changes', false);
CALL pgaudit_ctx.guard('pgaudit_ctx.operations', false);
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN
        SELECT inhrelid FROM pg_inherits WHERE inhparent = 'pgaudit_ctx.changes'::regclass
    LOOP
        CALL pgaudit_ctx.guard(partition, true);
    END LOOP;
END $$;

-- As before, but with the rights of the schema's owner, so that a writer may call it.
CREATE OR REPLACE FUNCTION pgaudit_ctx.ensure_partition(
    moment timestamptz, OUT lower_bound timestamptz, OUT upper_bound timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
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
    CALL pgaudit_ctx.guard(format('pgaudit_ctx.%I', partition)::regclass, true);
END $$;
REVOKE EXECUTE ON FUNCTION pgaudit_ctx.ensure_partition FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE pgaudit_ctx.guard FROM PUBLIC;

-- Three roles: one owns the trail, one writes it, one reads it. They belong to the whole server and
-- have names of its choice, so setup makes them; this gives each what it needs here and no more.
-- Repeated by every setup, because later migrations bring new tables.
CREATE PROCEDURE pgaudit_ctx.assign_roles(owner name, writer name, reader name)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    item record;
    owner_oid oid := (SELECT r.oid FROM pg_roles r WHERE r.rolname = owner);
BEGIN
    IF EXISTS (SELECT FROM pg_namespace
            WHERE nspname = 'pgaudit_ctx' AND nspowner <> owner_oid) THEN
        EXECUTE format('ALTER SCHEMA pgaudit_ctx OWNER TO %I', owner);
    END IF;
    FOR item IN
        SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace = 'pgaudit_ctx'::regnamespace AND c.relowner <> owner_oid
            AND c.relkind IN ('r', 'p', 'v')
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', item.name, owner);
    END LOOP;
    FOR item IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'pgaudit_ctx'::regnamespace AND p.proowner <> owner_oid
    LOOP
        EXECUTE format('ALTER ROUTINE %s OWNER TO %I', item.name, owner);
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA pgaudit_ctx TO %I, %I', writer, reader);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA pgaudit_ctx TO %I', reader);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA pgaudit_ctx'
        ' GRANT SELECT ON TABLES TO %I', owner, reader);
    EXECUTE format('GRANT EXECUTE ON FUNCTION pgaudit_ctx.ensure_partition TO %I', writer);
    FOR item IN
        SELECT c.oid::regclass AS name, CASE
            WHEN c.relname = 'changes' THEN 'INSERT'
            WHEN c.relname IN ('operations', 'gaps') THEN 'SELECT, INSERT'
            WHEN c.relname IN ('migrations', 'partitioning', 'tracked') THEN 'SELECT'
            ELSE 'SELECT, INSERT, UPDATE' END AS rights
        FROM pg_class c
        WHERE c.relnamespace = 'pgaudit_ctx'::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition
    LOOP
        EXECUTE format('GRANT %s ON %s TO %I', item.rights, item.name, writer);
    END LOOP;
    -- Which changes are stored already, but not what is in them.
    EXECUTE format('GRANT SELECT (source, epoch, commit_lsn, ordinal, committed_at)'
        ' ON pgaudit_ctx.changes TO %I', writer);
END $$;
REVOKE EXECUTE ON PROCEDURE pgaudit_ctx.assign_roles FROM PUBLIC;
COMMENT ON PROCEDURE pgaudit_ctx.assign_roles IS
    'Gives the trail to its owner, and the writer and the reader what they need of it.';
