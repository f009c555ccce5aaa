"""Prompts for a first run, written for this project; none is out of any data set."""
