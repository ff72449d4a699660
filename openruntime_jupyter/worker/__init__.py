"""Code that runs only inside a worker process."""
