-- A partition that prune is taking out takes no rows any more: whoever has some waits, and is not told
-- that there is room for them.
CREATE OR REPLACE FUNCTION pgaudit_ctx.ensure_partition(
    moment timestamptz, OUT lower_bound timestamptz, OUT upper_bound timestamptz
) LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    unit text := (SELECT p.unit FROM pgaudit_ctx.partitioning p);
    partition text;
    attached boolean;
    going boolean;
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
        SELECT c.relispartition, coalesce(i.inhdetachpending, false) INTO attached, going
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE n.nspname = 'pgaudit_ctx' AND c.relname = partition;
        IF going THEN
            RAISE EXCEPTION 'the partition pgaudit_ctx.% is being taken out of the trail', partition
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    HINT = 'Run pgaudit-ctx prune again, which drops it; then a new one is made.';
        ELSIF attached THEN
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
