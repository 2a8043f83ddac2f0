"""Process reward models behind a server."""
