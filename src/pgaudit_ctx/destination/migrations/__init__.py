"""Numbered SQL migrations of the schema ``pgaudit_ctx``, applied in order, each once."""
