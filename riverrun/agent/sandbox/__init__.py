"""Running code that nobody has read, in a process with less to reach."""
