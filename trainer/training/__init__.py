"""What trains: a run built from its config, the loop, and what each step needs."""
