"""Agents: a loop of model and tools that is itself a language model; tools, guards, journal, sandbox."""
