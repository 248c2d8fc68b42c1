"""From overrides to a typed config: the schema of a run, and its composition by Hydra."""
