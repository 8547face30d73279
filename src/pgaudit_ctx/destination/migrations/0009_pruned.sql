-- What has left the trail because it was old. Written down before a partition goes, so that reading
-- never takes what was forgotten for what never was.

CREATE TABLE pgaudit_ctx.pruned (
    partition text NOT NULL,
    lower_bound timestamptz NOT NULL,
    upper_bound timestamptz NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    dropped_at timestamptz,
    PRIMARY KEY (partition, at)
);
COMMENT ON TABLE pgaudit_ctx.pruned IS
    'Partitions of changes that prune has dropped, or has begun to.';
COMMENT ON COLUMN pgaudit_ctx.pruned.upper_bound IS
    'Changes committed before this are forgotten; reading says so.';
