"""OpenAI-style HTTP over any `LanguageModel`."""
