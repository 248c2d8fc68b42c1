"""What survives a restart: the state of a run, its storage, and when it is saved."""
