"""Makes and measures adapters and libraries: the catalogue of data sets, training, evaluation, conversion."""
