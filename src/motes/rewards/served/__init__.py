"""Process reward models behind a server: what is asked of it, and how that is found out."""
