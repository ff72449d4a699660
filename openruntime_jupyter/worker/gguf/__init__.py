"""GGUF files: a model, its tokenizer and its chat template from one file.

`header` and `llama` import no MLX; the server asks them. The rest runs in a worker.
"""
