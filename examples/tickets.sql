-- Each ticket gets an urgency and a summary, and each summary gets a topic. Run it by: loracomp db psql -f examples/tickets.sql
CREATE TABLE tickets (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, text text NOT NULL);
SELECT loracomp.create_answers('ticket_urgency', source => 'tickets',
    prompt => E'Ticket: {text}\nThis is', choices => '{urgent,not urgent}');
SELECT loracomp.create_answers('ticket_summary', source => 'tickets',
    prompt => 'Summary of "{text}" in ten words:', max_new_tokens => 40);

-- A chain of two declarations: the summaries are copied into a table, and its rows get answers too.
CREATE TABLE summaries (ticket bigint PRIMARY KEY REFERENCES tickets ON DELETE CASCADE, summary text NOT NULL);
SELECT loracomp.create_answers('ticket_topic', source => 'summaries',
    prompt => E'{summary}\nThis is about', choices => '{heating,water,noise,money}');

INSERT INTO tickets (text) VALUES
    ('Water pours through the ceiling, and nobody answers the phone.'), ('The bill for March has come twice.');
\! loracomp worker --drain

-- Your program would run this whenever a notification on loracomp_answers names ticket_summary.
INSERT INTO summaries
SELECT id, answer FROM ticket_summary WHERE status = 'answered' AND answer <> ''
ON CONFLICT (ticket) DO UPDATE SET summary = excluded.summary;
\! loracomp worker --drain

SELECT t.id, u.answer AS urgency, s.answer AS summary, p.answer AS topic
FROM tickets AS t
JOIN ticket_urgency AS u USING (id)
JOIN ticket_summary AS s USING (id)
LEFT JOIN ticket_topic AS p ON p.ticket = t.id
ORDER BY t.id;
