"""The gateway: one OpenAI-compatible endpoint that makes the models behind it answer better."""
