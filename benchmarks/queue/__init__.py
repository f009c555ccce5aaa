"""The queue by itself: a model that does nothing, and the whole trace written."""
