"""Reward models: whatever scores the steps of a partial answer."""
