// Two functions of a web application, for Node.js: one opens a ticket, and one reads how urgent loracomp finds it.
// They need `npm install pg`; examples/tickets.sql creates the table and declares ticket_urgency.
'use strict';

/** Add a ticket; a worker answers it within a moment. `database` is a Pool of pg. */
async function openTicket(database, text) {
  const { rows } = await database.query('INSERT INTO tickets (text) VALUES ($1) RETURNING id', [text]);
  return rows[0].id;
}

/** A ticket's urgency (null if it has no answer yet), status, and the reason if it can't be answered. */
async function urgency(database, id) {
  const { rows } = await database.query(
    'SELECT coalesce(correct, answer) AS urgency, status, reason FROM ticket_urgency WHERE id = $1', [id]);
  return rows[0];
}

module.exports = { openTicket, urgency };
