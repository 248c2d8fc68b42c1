"""The processes of a run: who they are, how they fail together, how a model is distributed over them."""
