"""What fits and how long it takes, by arithmetic on plain numbers: no torch, no measuring, no network."""
