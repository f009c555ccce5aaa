"""How well routing finds a row's task, computed in NumPy: the tables of docs/routing.md."""
