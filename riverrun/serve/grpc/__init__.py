"""gRPC over any `LanguageModel`; riverrun.proto describes it."""
