"""Language models in a worker: loading them, and the text that they write. Only `worker/` imports what this needs, and late."""
