"""The state of jobs, queues and nodes, for operators and monitors. Nothing here writes."""
