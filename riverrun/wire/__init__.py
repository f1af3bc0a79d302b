"""Tool-call formats, one home: render, parse, stream, repair. Shared by serving, training data and agents."""
