from motes.core import *  # noqa: F403
