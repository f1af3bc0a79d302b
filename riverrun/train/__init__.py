"""Trainer and objectives. Knows no engine and no benchmark."""
