"""The stages of the recipe that trains the bundled models."""
