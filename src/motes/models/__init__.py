"""Language models: whatever extends partial answers by a step."""
