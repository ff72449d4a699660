"""MLX functions, expressions and their memory needs."""
