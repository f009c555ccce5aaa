"""Loads base models and encoders, tokenises, scores, generates and batches; `model.cpu` tunes all of it for CPUs."""
