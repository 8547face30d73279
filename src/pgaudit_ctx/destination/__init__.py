"""The trail: its schema, what is written beside the changes, and the sink."""
