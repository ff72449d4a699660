"""Agent: runs tasks on this host for the runtimes of other machines."""
