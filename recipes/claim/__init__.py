"""Measuring the claims: what is run for each, and how it is told."""
