"""Train a reward model from a language model and a checker of final answers."""
