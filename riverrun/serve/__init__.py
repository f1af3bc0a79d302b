"""Tokens to tokens, then text to text, then HTTP."""
