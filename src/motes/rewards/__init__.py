"""Reward models, which score the steps of partial answers."""
