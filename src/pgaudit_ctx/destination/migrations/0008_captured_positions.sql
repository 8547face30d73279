-- What a slot may be told that is kept back: which position the trail had reached at which time.

CREATE TABLE pgaudit_ctx.captured_positions (
    source text NOT NULL,
    epoch integer NOT NULL,
    end_lsn pg_lsn NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (source, epoch, end_lsn)
);
COMMENT ON TABLE pgaudit_ctx.captured_positions IS
    'With worker --ack-delay: when the checkpoint was where, by the destination''s clock.';
