-- "Everything this user did" is asked every day. Contexts that say who under another key leave this
-- index empty, and want one on that key: docs/reference/tables.md.
CREATE INDEX changes_user ON pgaudit_ctx.changes ((context ->> 'user'))
    WHERE (context ->> 'user') IS NOT NULL;
