from motes.conformance import *  # noqa: F403
