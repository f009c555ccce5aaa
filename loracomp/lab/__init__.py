"""What makes and measures a library: the catalogue of data sets, training, evaluation. Only commands import it."""
