"""What people and monitors look at. Nothing here writes."""
