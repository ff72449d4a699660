"""Tasks of this runtime: submission, state, results and recovery."""
