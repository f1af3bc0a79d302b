"""The command line: wiring only, sub-commands import what they need when they run."""
