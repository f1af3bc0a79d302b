"""What the benches are made of; the benches themselves are the modules beside this folder."""
