"""riverrun: a language model the whole way, from data to a running application."""

__version__ = "0.1.0"
