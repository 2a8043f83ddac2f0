from motes.transport import *  # noqa: F403
