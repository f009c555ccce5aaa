-- Run this model after `loracomp worker` has answered the rows. depends_on: {{ ref('ticket') }}
SELECT id, text FROM {{ ref('ticket') }} JOIN {{ this.schema }}.ticket_urgency USING (id)
WHERE coalesce(correct, answer) = 'urgent'
