"""Studies: a grid of trainings and measurements, each in a folder of its own, and one page about all of them."""
