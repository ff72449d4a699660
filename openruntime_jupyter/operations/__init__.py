"""Named kinds of work with typed parameters: one file an operation."""
