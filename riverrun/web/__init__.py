"""Pages, inline charts and the one app factory of every server. Pages and charts need no web framework."""
