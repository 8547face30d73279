"""Keys of changes that were written before DDL and are read after it."""


def test_a_key_column_renamed_before_the_log_is_read_leaves_older_changes_their_key(blank) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x')")
    blank.source.execute("ALTER TABLE t RENAME COLUMN id TO pid")
    assert [row.primary_key for row in blank.changes()] == [["1"]]


def test_a_table_dropped_before_the_log_is_read_leaves_its_changes_their_key(blank) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 'x')")
    blank.source.execute("DROP TABLE t")
    assert [row.primary_key for row in blank.changes()] == [["1"]]


def test_where_two_keys_are_possible_the_key_is_left_out_rather_than_wrong(
    blank,
) -> None:
    blank.source.execute("CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL)")
    blank.setup()
    blank.source.execute("INSERT INTO t VALUES (1, 7)")
    blank.source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (b)")
    assert [row.primary_key for row in blank.changes()] == [None]
