"""Array files, conversion between NumPy and MLX, and pickles with arrays outside: used by client, runtime and worker."""
