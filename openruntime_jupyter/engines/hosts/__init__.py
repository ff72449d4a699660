"""Engine over hosts: other machines whose agents run tasks of this runtime."""
