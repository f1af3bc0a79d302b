"""The leaf: types, protocols, config, artifacts, errors. Imports no other room."""
