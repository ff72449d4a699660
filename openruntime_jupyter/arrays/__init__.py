"""Array files, conversion between NumPy and MLX, and pickles with out-of-band arrays; used by client, runtime and worker."""
