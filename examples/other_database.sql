-- Run this in your own database. It inserts jobs into loracomp's database and reads their results through postgres_fdw; a tag on
-- each job says which row it belongs to.
CREATE EXTENSION postgres_fdw;
CREATE SERVER loracomp FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'db.example', port '5432', dbname 'loracomp');
CREATE USER MAPPING FOR CURRENT_USER SERVER loracomp OPTIONS (user 'shop', password 'secret');
CREATE FOREIGN TABLE ask (prompt text, choices text[], tags jsonb)
    SERVER loracomp OPTIONS (schema_name 'loracomp', table_name 'job');
CREATE FOREIGN TABLE result (status text, output text, confidence float, tags jsonb)
    SERVER loracomp OPTIONS (schema_name 'loracomp', table_name 'job_result');
INSERT INTO ask SELECT format(E'Ticket: %s\nThis is', subject), '{urgent,not urgent}', jsonb_build_object('ticket', id) FROM tickets;
CREATE VIEW ticket_urgency AS
SELECT t.id, r.status, r.output AS answer, r.confidence FROM tickets AS t LEFT JOIN result AS r ON r.tags ->> 'ticket' = t.id::text;
