"""What GPUs say of themselves: utilisation, memory, temperature, power. Probes add figures to MLX's devices, never devices."""
