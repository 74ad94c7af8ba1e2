"""The worker processes: the only room where a project's own code runs."""
