"""Makes and measures libraries: the catalogue of data sets, training, evaluation. Only `cli` imports this package."""
