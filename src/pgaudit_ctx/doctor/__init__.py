"""What ``pgaudit-ctx doctor`` and ``status`` look at: facts gathered once, then pure checks."""
