"""Documents through operators, and questions and conversations from a database. Runs without torch."""
