from motes.inspect_provider import *  # noqa: F403
