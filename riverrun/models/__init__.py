"""What a model is, on one device. Importing this room does not import torch."""
