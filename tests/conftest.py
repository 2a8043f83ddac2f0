"""Every test is a fixed computation: hypothesis draws the same examples each time, and no clock decides."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
