"""The recipe of the bundled models, stage by stage."""
