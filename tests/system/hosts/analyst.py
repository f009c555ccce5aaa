"""An analyst: `python analyst.py URL QUERY` repeats a query without end, and prints after each run how many rows it
returned."""

import sys

import psycopg

if __name__ == "__main__":
    url, query = sys.argv[1:]
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            print(len(connection.execute(query.encode()).fetchall()), flush=True)
