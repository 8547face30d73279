"""The audited database: what setup changes in it, what its catalog says, and its stream."""
