"""What runs in the supervisor and the scheduler of a node: no code of a project's."""
