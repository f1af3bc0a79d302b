"""Tools that come with the project: a read-only database and a page search."""
