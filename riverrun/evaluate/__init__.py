"""Scores with intervals. Models are seen only through `LanguageModel`: an engine, an API, an agent and a fake alike."""
