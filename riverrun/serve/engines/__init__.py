"""Engines turn tokens into logits. They know no template, no tool, no session."""
