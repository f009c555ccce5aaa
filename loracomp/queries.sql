-- Every statement that Python sends, COPY apart; placeholders are psycopg's. A block calls the SQL function of its name.

-- name: ping
SELECT 1

-- name: check_health
SELECT * FROM loracomp.check_health()
