"""GGUF files: header, tokenizer, and conversion of weights."""
