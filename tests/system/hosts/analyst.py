"""An analyst: `python analyst.py URL QUERY` runs a query without end, and says after each how many rows it had."""

import sys

import psycopg

if __name__ == "__main__":
    url, query = sys.argv[1:]
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            print(len(connection.execute(query.encode()).fetchall()), flush=True)
